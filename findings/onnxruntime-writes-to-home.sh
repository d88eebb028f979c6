#!/usr/bin/env bash
# `import onnxruntime` writes an id of the device and a database into the home folder.
#
# No session has to be created and no model opened. With ORT_DISABLE_TELEMETRY=1 nothing is written. Matters for
# containers with a home that is read-only, and for tests that compare what a program leaves behind. Seen with
# onnxruntime 1.32.0 on Linux, the files in an empty home after the import:
#     .cache/Microsoft/DeveloperTools/.onnxruntime/deviceid
#     .cache/Microsoft/DeveloperTools/.onnxruntime/onnxruntime.db
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check onnxruntime==1.32.0
mkdir "$dir/home" "$dir/quiet"
HOME=$dir/home "$dir/env/bin/python" -c 'import onnxruntime; print("onnxruntime", onnxruntime.__version__)'
HOME=$dir/quiet ORT_DISABLE_TELEMETRY=1 "$dir/env/bin/python" -c 'import onnxruntime'
cd "$dir/home"
echo 'written:'; find . -type f | sort
test -f .cache/Microsoft/DeveloperTools/.onnxruntime/deviceid
test -z "$(ls -A "$dir/quiet")"
