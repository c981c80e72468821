#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# onnxruntime on a CPU: ReduceMax, ReduceMin and ArgMax see a NaN only where it stands first. Max and TopK see every one.
#
# Guess:  ReduceMax gives NaN if there is one, as Max of the same runtime and ONNX's own reference do; TopK with k = 1 is ReduceMax.
# Seen:   1.32.0 compares each element with the best so far, beginning with the first: a NaN in front stays, and any other is skipped.
#         ArgMax then names another element than TopK. DynamicQuantizeLinear finds its range so, and makes the NaN the code of 0: what it
#         gives is finite.
# Hurts:  checks of an exported model by ReduceMax; scales of 8-bit keys and values taken by ReduceMax of Abs: a broken row looks whole.
#         ONNX's reference gives NaN for the same model.
# Mend:   IsNaN and ReduceMax of its result as integers; or TopK.
#
# Needs python3 with venv. The packages are installed from PyPI in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 ml_dtypes==0.6.0 onnx==1.23.2 onnxruntime==1.32.0
seen=$("$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto as kinds
from onnx import helper
from onnx.reference import ReferenceEvaluator

onnxruntime.set_default_logger_severity(4)

def run(operator, inputs, outputs, **attributes):  # by onnxruntime, by ONNX's reference
    of = {np.dtype("float32"): kinds.FLOAT, np.dtype("int64"): kinds.INT64}
    node = helper.make_node(operator, list(inputs), [f"out{i}" for i in range(len(outputs))], **attributes)
    graph = helper.make_graph([node], "graph", [helper.make_tensor_value_info(n, of[x.dtype], x.shape) for n, x in inputs.items()],
                              [helper.make_tensor_value_info(f"out{i}", kind, None) for i, kind in enumerate(outputs)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [[x.tolist() for x in found] for found in (session.run(None, inputs), ReferenceEvaluator(model).run(None, inputs))]

nan = np.nan
one = np.array([1], np.int64)
for row in ([nan, 1, 5, 2], [1, nan, 5, 2], [1, 5, 2, nan]):
    x = np.array(row, np.float32)
    print(f"{row}, onnxruntime and reference:")
    for operator in ("ReduceMax", "ReduceMin"):
        print(f"  {operator}:", *(found[0] for found in run(operator, {"x": x}, [kinds.FLOAT], keepdims=0)))
    print("  ArgMax:", *(found[0] for found in run("ArgMax", {"x": x}, [kinds.INT64], axis=0, keepdims=0)))
    print("  TopK, k = 1:", *(f"{values[0]} at {places[0]}" for values, places in run("TopK", {"x": x, "k": one}, [kinds.FLOAT, kinds.INT64])))
    print("  Max with 0:", *(found[0] for found in run("Max", {"x": x, "y": np.zeros(4, np.float32)}, [kinds.FLOAT])))
    codes, scale, zero = run("DynamicQuantizeLinear", {"x": x}, [kinds.UINT8, kinds.FLOAT, kinds.UINT8])[0]
    print(f"  DynamicQuantizeLinear, onnxruntime: codes {codes}, scale {scale:.4f}, zero point {zero}")
PYTHON
)
expected='[nan, 1, 5, 2], onnxruntime and reference:
  ReduceMax: nan nan
  ReduceMin: nan nan
  ArgMax: 0 0
  TopK, k = 1: nan at 0 nan at 0
  Max with 0: [nan, 1.0, 5.0, 2.0] [nan, 1.0, 5.0, 2.0]
  DynamicQuantizeLinear, onnxruntime: codes [0, 51, 255, 102], scale 0.0196, zero point 0
[1, nan, 5, 2], onnxruntime and reference:
  ReduceMax: 5.0 nan
  ReduceMin: 1.0 nan
  ArgMax: 2 1
  TopK, k = 1: nan at 1 nan at 1
  Max with 0: [1.0, nan, 5.0, 2.0] [1.0, nan, 5.0, 2.0]
  DynamicQuantizeLinear, onnxruntime: codes [51, 0, 255, 102], scale 0.0196, zero point 0
[1, 5, 2, nan], onnxruntime and reference:
  ReduceMax: 5.0 nan
  ReduceMin: 1.0 nan
  ArgMax: 1 3
  TopK, k = 1: nan at 3 nan at 3
  Max with 0: [1.0, 5.0, 2.0, nan] [1.0, 5.0, 2.0, nan]
  DynamicQuantizeLinear, onnxruntime: codes [51, 255, 102, 0], scale 0.0196, zero point 0'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
