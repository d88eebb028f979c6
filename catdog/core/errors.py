"""Errors that a user can put right, and the decorator that makes a function a command"""

import os, sys
from functools import wraps

from fastcore.script import call_parse, is_cli

class CatdogError(ValueError):
    "Something that a person can put right; its text says what is wrong and what to do"

class BadImage(CatdogError):
    "`reason` says why this is no picture that we can use, `status` is the same as one word for a table"
    def __init__(self,
        reason:str, # What is wrong, as a person would say it
        status:str='not-an-image' # 'not-an-image', 'truncated', 'too-large', 'too-small' or 'missing'
    ):
        super().__init__(reason)
        self.reason,self.status = reason,status

def command(
    func # With docments: the comments become the command's help
): # A function as before, and what a console script calls
    "`func` as fastcore's `call_parse` makes it a command, with a `CatdogError` as one sentence and exit status 2"
    @wraps(func)
    def _f(*args, **kwargs):
        try: return func(*args, **kwargs)
        except CatdogError as e:
            if not is_cli(main): raise
            print(f'{os.path.basename(sys.argv[0])}: {e}', file=sys.stderr)
            raise SystemExit(2) from None
    main = call_parse(_f)
    return main

class ModelError(CatdogError):
    "This is no model that we can use; the text says why"

class SearchError(CatdogError):
    "`engine` could not answer; `offline` when it could not even be reached, `term` when another one may do better"
    def __init__(self,
        engine:str, # Name of the engine
        text:str, # What happened and what to do
        offline:bool=False, # Could it not be reached at all?
        term:bool=False # Is it about what was searched for?
    ):
        super().__init__(f'{engine}: {text}')
        self.engine,self.text,self.offline,self.term = engine,text,offline,term
