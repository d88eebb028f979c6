"""The errors that catdog raises, and the decorator that makes a function a command

    CatdogError             an error the user can fix; its text says what is wrong and what to do
    ├── ImageError          bytes that are not an image we can use
    ├── FetchError          a request that failed: `reason` says why in one word
    │   └── SearchError     a search that failed
    ├── DataError           a data set on disk that cannot be used
    └── ModelError          a file that is not a model we can use"""

import errno, os, sys
from functools import wraps
from fastcore.script import call_parse, is_cli

class CatdogError(ValueError):
    "An error that the user can fix; its text says what is wrong and what to do"

class DataError(CatdogError): "A data set that cannot be used"
class ModelError(CatdogError): "A file that is not a model we can use"

class ImageError(CatdogError):
    "Bytes that are not an image we can use"
    def __init__(self,
        reason:str, # What is wrong, as text for the user
        status:str='not-an-image' # For tables: 'not-an-image', 'truncated', 'too-large', 'too-small', 'missing'
    ):
        super().__init__(reason)
        self.reason,self.status = reason,status

class FetchError(CatdogError):
    "A request that failed"
    def __init__(self,
        text:str, # What happened, as text for the user
        reason:str='unreachable' # 'timeout', 'refused', 'not-found', 'unreachable', 'busy' or 'invalid'
    ):
        super().__init__(text)
        self.text,self.reason = text,reason

class SearchError(FetchError):
    "A search that failed"
    def __init__(self,
        engine:str, # Name of the engine
        text:str, # What happened and what to do
        offline:bool=False, # Whether it could not be reached at all
        term:bool=False # Whether another search term may succeed
    ):
        super().__init__(f'{engine}: {text}', 'unreachable' if offline else 'refused')
        self.engine,self.text,self.offline,self.term = engine,text,offline,term

def _escape_output():
    "Let stdout escape characters that its encoding lacks, as stderr does, instead of raising an error"
    if getattr(sys.stdout, 'errors', None) in ('strict', 'surrogateescape') and hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')

_escape_output()   # for functions that are not commands

_PLACE = errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT   # not the program's fault
def command(
    func # A function with docments, which become the command's help
): # `func` for Python, and an entry point for console scripts
    "Make `func` a command with fastcore's `call_parse`; one sentence on a `CatdogError`, a full disk or Ctrl-C"
    @call_parse
    @wraps(func)
    def _f(*args, **kwargs):
        _escape_output()   # stdout may have been replaced
        try: return func(*args, **kwargs)
        except (CatdogError, OSError) as e:
            place = isinstance(e, OSError) and (e.errno in _PLACE or 'temporary directory' in str(e))
            if not is_cli(_f) or not (place or isinstance(e, CatdogError)): raise
            text = f'{e.filename or "a file"}: cannot be written or read ({e.strerror})' if place else e
            print(f'{os.path.basename(sys.argv[0])}: {text}', file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            if not is_cli(_f): raise
            print(f'\n{os.path.basename(sys.argv[0])}: stopped', file=sys.stderr)
            raise SystemExit(130) from None
    return _f
