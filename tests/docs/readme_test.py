"""The programs shown in README.md are those of tests/examples, which are compiled and run; and they stay short."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOST_LINES = 25

problems = []
blocks = re.findall(r'`tests/examples/(\w+)\.cpp`\):\n\n```cpp\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
expected = {path.stem for path in (ROOT / 'tests/examples').glob('*.cpp')}
if {name for name, _ in blocks} != expected:
    problems.append(f'README.md shows {sorted(name for name, _ in blocks)}, tests/examples has {sorted(expected)}')
for name, shown in blocks:
    path = ROOT / 'tests/examples' / f'{name}.cpp'
    if path.exists() and path.read_text() != shown:
        problems.append(f'README.md shows another {name}.cpp than tests/examples has; copy the file into the README')
    if len(shown.splitlines()) > MOST_LINES:
        problems.append(f'{name}.cpp has {len(shown.splitlines())} lines, more than the {MOST_LINES} that the README promises')
for link in re.findall(r'`((?:docs|include|benchmarks|tests|apps)/[\w./-]+\.\w+)`', (ROOT / 'README.md').read_text()):
    if not (ROOT / link).exists():
        problems.append(f'README.md names {link}, which is not there')
print('\n'.join(problems) or f'{len(blocks)} programs are as shown')
sys.exit(1 if problems else 0)
