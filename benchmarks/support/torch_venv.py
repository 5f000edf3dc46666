"""PyTorch for comparisons: installed from PyPI into build/bench-venv when it is first asked for."""
import subprocess
import sys

import measure

VENV = measure.ROOT / 'build/bench-venv'
TORCH_VERSION = '2.15.0'


def python():
    """The path of a Python that has PyTorch."""
    path = VENV / 'bin/python'
    if not path.exists():
        print('installing PyTorch into build/bench-venv', flush=True)
        subprocess.run([sys.executable, '-m', 'venv', VENV], check=True)
        subprocess.run([VENV / 'bin/pip', 'install', '--quiet', '--no-cache-dir', 'numpy', f'torch=={TORCH_VERSION}'],
                       check=True)
    return path
