"""The names of clipcheck's backends; it imports nothing."""

CLASSES = {
    "jit": "Archive",
    "eager": "Eager",
    "trace": "Trace",
    "script": "Script",
    "compile": "Compile",
    "export": "Export",
    "aotinductor": "AOTInductor",
    "onnxruntime": "ONNXRuntime",
    "openvino": "OpenVINO",
    "executorch": "ExecuTorch",
    "open_clip": "OpenClip",
    "transformers": "Transformers",
    "clip": "Clip",
}
"""Class of each backend of clipcheck, in the file with the backend's name."""

BACKENDS = tuple(CLASSES)
"""Backends of clipcheck, in the order of runs and reports. Other packages may add more, see
`clipcheck.backends.registry.GROUP`."""

OF_ARCHIVES = BACKENDS[0]
"""The backend that runs an archive's own code."""
