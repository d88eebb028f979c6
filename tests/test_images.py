"The room core.images where a second process is needed: functions that are commands."
import subprocess, sys

import pytest

@pytest.fixture
def halve(tmp_path):
    "Runs a command that halves its argument"
    script = tmp_path/'halve.py'
    script.write_text('''from catdog.core.images import command, CatdogError
@command
def halve(
    n:int # An even number
):
    "Half of `n`"
    if n%2: raise CatdogError(f'{n} is odd: give an even number')
    print(n//2)
if __name__ == '__main__': halve()
''')
    return lambda *args: subprocess.run([sys.executable, script, *args], capture_output=True, text=True)

def test_a_command_says_what_is_wrong_in_one_line_with_exit_status_2(halve):
    assert halve('4').stdout == '2\n'
    odd,text = halve('5'),halve('five')
    assert (odd.returncode, odd.stderr) == (2, 'halve.py: 5 is odd: give an even number\n')
    assert text.returncode == 2

def test_the_help_of_a_command_is_made_of_the_comments(halve): assert 'An even number' in halve('--help').stdout
