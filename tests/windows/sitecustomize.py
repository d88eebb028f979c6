"""Imitate Windows in every Python process that has this folder on its PYTHONPATH

catdog finds no `fcntl`, and a file that the process has open cannot be deleted, renamed or replaced.
Set PYTHONIOENCODING for output in another encoding.
"""
import builtins, os

MISSING = 'fcntl', 'grp', 'pwd', 'resource', 'termios'

def import_as_on_windows(name, globals=None, *args, _import=builtins.__import__, **kwargs):
    "Hides Unix modules from catdog alone: other packages have branches of their own, by `sys.platform`"
    if name in MISSING and (globals or {}).get('__name__', '').startswith('catdog'):
        raise ModuleNotFoundError(f'No module named {name!r}', name=name)
    return _import(name, globals, *args, **kwargs)

def is_open(path):
    "Whether this process has the file `path` open"
    path = os.path.realpath(path)
    for fd in os.listdir('/proc/self/fd'):
        try:
            if os.readlink(f'/proc/self/fd/{fd}') == path: return True
        except OSError: pass

def guarded(f, both):
    "`f`, which moves or deletes a file, as Windows does it"
    def _f(src, *args, **kwargs):
        if isinstance(src, int): return f(src, *args, **kwargs)
        for o in (src, *args[:both]):
            if isinstance(o, (str, bytes, os.PathLike)) and os.path.isfile(o) and is_open(os.fspath(o)):
                raise PermissionError(13, 'The process cannot access the file because it is being used by another process',
                                      os.fspath(o))
        return f(src, *args, **kwargs)
    return _f

builtins.__import__ = import_as_on_windows
for _name,_both in (('unlink', 0), ('remove', 0), ('rename', 1), ('replace', 1)):
    setattr(os, _name, guarded(getattr(os, _name), _both))
