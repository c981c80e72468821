#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# onnxruntime: Cast from float to int4 rounds where Cast to int8 truncates, and 7.5 becomes -8.
#
# Guess:  a cast to an integer drops the fraction, whatever the integer's width, as in C and numpy: 2.5 is 2, and 7.5 is 7. onnxruntime and ONNX's
#         reference evaluator agree.
# Seen:   1.32.0 on a CPU rounds to the nearest number, halves away from zero, for int4 and uint4, and keeps the low 4 bits: numbers from 7.5 to 8
#         become -8, and -8.6 becomes 7. ONNX's page about int4 asks for the nearest, halves to even; its reference (1.23.2) truncates. Of the
#         three, no two agree on both 1.5 and 2.5. QuantizeLinear with a scale of 1 saturates. Asked as onnxruntime issue 26451. No error.
# Hurts:  keys and values packed to 4 bits by "add a half and Cast", or scaled to just below 8 because the cast truncates: the largest number of a
#         row changes its sign. A test with int8 passes, and one with the reference too.
# Mend:   QuantizeLinear, which saturates; or Floor or Round and Clip before the Cast.
#
# Needs python3 (3.11 or newer) with venv and pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install --only-binary :all: numpy==2.2.6 onnx==1.23.2 onnxruntime==1.32.0 >/dev/null
cat >casts.py <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
from onnx.reference import ReferenceEvaluator
x = np.array([0.4, 0.6, 1.5, 2.5, -0.6, 7.4, 7.5, 7.9, -8.6], np.float32)
def show(what, node, reference=False):
    nodes = [node, make_node("Cast", ["z"], ["y"], to=onnx.TensorProto.FLOAT)]
    floats = lambda name: make_tensor_value_info(name, onnx.TensorProto.FLOAT, [len(x)])
    scale = [make_tensor(name, onnx.TensorProto.FLOAT, [], [1.0]) for name in node.input[1:]]
    graph = make_graph(nodes, "g", [floats("x")], [floats("y")], scale)
    model = make_model(graph, opset_imports=[make_opsetid("", 23)], ir_version=11)
    if reference:
        y = ReferenceEvaluator(model).run(None, {"x": x})[0]
    else:
        y = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    print(f"{what}: {' '.join(f'{v:g}' for v in y + 0.0)}")
print("onnxruntime", onnxruntime.__version__, "from", *x)
for name in ("INT8", "INT4", "UINT4"):
    cast = make_node("Cast", ["x"], ["z"], to=getattr(onnx.TensorProto, name))
    show(f"Cast {name}", cast)
    show(f"Cast {name}, reference", cast, reference=True)
show("QuantizeLinear INT4", make_node("QuantizeLinear", ["x", "one"], ["z"], output_dtype=onnx.TensorProto.INT4))
PYTHON
seen=$(v/bin/python -B casts.py 2>/dev/null)
expected='onnxruntime 1.32.0 from 0.4 0.6 1.5 2.5 -0.6 7.4 7.5 7.9 -8.6
Cast INT8: 0 0 1 2 0 7 7 7 -8
Cast INT8, reference: 0 0 1 2 0 7 7 7 -8
Cast INT4: 0 1 2 3 -1 7 -8 -8 7
Cast INT4, reference: 0 0 1 2 0 7 7 7 -8
Cast UINT4: 0 1 2 3 15 7 8 8 7
Cast UINT4, reference: 0 0 1 2 0 7 7 7 8
QuantizeLinear INT4: 0 1 2 2 -1 7 7 7 -8'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
