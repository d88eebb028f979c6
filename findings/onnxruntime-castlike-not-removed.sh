#!/usr/bin/env bash
# onnxruntime removes a Cast from float32 to float32, but not a CastLike: it stays, and no batch norm is merged.
#
# A batch norm after a convolution is merged into its weights when a model is opened. A Cast between them that changes
# nothing is removed first. A CastLike, whose second input is a float32 weight, is turned into the same Cast, too late
# for that, at each level of optimization. The result is right, but takes two more passes over the data. Seen with
# onnxruntime 1.32.0, the operations that are left:
#     Cast, basic: Conv Relu
#     Cast, extended: FusedConv
#     CastLike, basic: Conv Cast BatchNormalization Relu
#     CastLike, extended: Conv Cast BatchNormalization Relu
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2
cd "$dir"
env/bin/python - <<'PYTHON'
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import GraphOptimizationLevel as Level
print('onnxruntime', onnxruntime.__version__)
def left(cast, level):
    nodes = [helper.make_node('Conv', ['x', 'w'], ['conv']), cast,
             helper.make_node('BatchNormalization', ['cast', 'scale', 'bias', 'mean', 'variance'], ['norm']),
             helper.make_node('Relu', ['norm'], ['y'])]
    x,y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, ['n', *o]) for k,o in dict(x=[3, 8, 8], y=[4, 6, 6]).items())
    shapes = dict(w=(4, 3, 3, 3), scale=4, bias=4, mean=4, variance=4)
    arrays = [numpy_helper.from_array(np.random.default_rng(0).random(v, 'float32'), k) for k,v in shapes.items()]
    model = helper.make_model(helper.make_graph(nodes, 'g', [x], [y], arrays), ir_version=10,
                              opset_imports=[helper.make_opsetid('', 20)])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level,options.optimized_model_filepath = level,'out.onnx'
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    return ' '.join(o.op_type for o in onnx.load('out.onnx').graph.node)
seen = {}
for cast in (helper.make_node('Cast', ['conv'], ['cast'], to=TensorProto.FLOAT),
             helper.make_node('CastLike', ['conv', 'w'], ['cast'])):
    for name,level in dict(basic=Level.ORT_ENABLE_BASIC, extended=Level.ORT_ENABLE_EXTENDED).items():
        seen[cast.op_type, name] = left(cast, level)
        print(f'{cast.op_type}, {name}: {seen[cast.op_type, name]}')
assert all(('BatchNormalization' in v) == (k[0] == 'CastLike') for k,v in seen.items())
PYTHON
