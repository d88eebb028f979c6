#!/usr/bin/env bash
# traitlets ignores the configuration of a class whose name begins with an underscore, without a word.
#
# A class takes the section of the configuration that has its name, and those of the classes that it is derived from.
# But to traitlets _Server is not a section, only a value that is never read: nothing is set, and no error is raised.
# Seen with traitlets 5.16.1, for a trait `port` of 1 and the configuration {NAME: {"port": 5}}:
#     Server: from a dictionary 5, from a JSON file 5, in a subclass 5
#     _Server: from a dictionary 1, from a JSON file 1, in a subclass 1
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check traitlets==5.16.1
cd "$dir"
env/bin/python - <<'PYTHON'
import json, traitlets
from pathlib import Path
from traitlets.config import Application, Config, Configurable
print('traitlets', traitlets.__version__)
class Server(Configurable): port = traitlets.Int(1).tag(config=True)
class _Server(Configurable): port = traitlets.Int(1).tag(config=True)
seen = {}
for cls in (Server, _Server):
    class Derived(cls): pass
    name = cls.__name__
    Path('conf.json').write_text(json.dumps({name: {'port': 5}}))
    app,config = Application(),Config({name: {'port': 5}})
    app.load_config_file('conf', path=['.'])
    seen[name] = [cls(config=config).port, cls(config=app.config).port, Derived(config=config).port]
    print('{}: from a dictionary {}, from a JSON file {}, in a subclass {}'.format(name, *seen[name]))
assert seen == dict(Server=[5, 5, 5], _Server=[1, 1, 1])
PYTHON
