"""The programs shown in README.md and docs are those of tests/examples, which are compiled and run; and the README's stay short."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOST_LINES = 25

problems = []
shown_in = {}
for page in [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]:
    for name, shown in re.findall(r'`tests/examples/(\w+)\.cpp`\):\n\n```cpp\n(.*?)```', page.read_text(), re.S):
        shown_in[name] = page.name
        path = ROOT / 'tests/examples' / f'{name}.cpp'
        if not path.exists():
            problems.append(f'{page.name} shows {name}.cpp, which tests/examples does not have')
        elif path.read_text() != shown:
            problems.append(f'{page.name} shows another {name}.cpp than tests/examples has; copy the file into it')
        if page.name == 'README.md' and len(shown.splitlines()) > MOST_LINES:
            problems.append(f'{name}.cpp has {len(shown.splitlines())} lines, more than the {MOST_LINES} that the README promises')
for path in sorted((ROOT / 'tests/examples').glob('*.cpp')):
    if path.stem not in shown_in:
        problems.append(f'{path.name} of tests/examples is shown nowhere')
for link in re.findall(r'`((?:docs|include|benchmarks|tests|apps)/[\w./-]+\.\w+)`', (ROOT / 'README.md').read_text()):
    if not (ROOT / link).exists():
        problems.append(f'README.md names {link}, which is not there')
print('\n'.join(problems) or f'{len(shown_in)} programs are as shown')
sys.exit(1 if problems else 0)
