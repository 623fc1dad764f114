import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["models.artifact", "service.app", "service.inference.session", "service.workers", "training.cli", "training.evaluate"],
)
def test_onnx_runtime_is_told_to_send_nothing(module):
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    program = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
import {module}
"""
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"
