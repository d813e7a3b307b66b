"""What this build of llama.cpp is, as JSON on standard output."""

import json
import sys

from service.llama.backend import build

if __name__ == "__main__":
    described = build()
    json.dump(
        {
            "name": described.name,
            "binding_version": described.binding_version,
            "llama_version": described.llama_version,
            "system_info": described.system_info,
            "supports_gpu_offload": described.supports_gpu_offload,
        },
        sys.stdout,
    )
