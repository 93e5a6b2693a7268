// One function a runtime; the registry in exporter.cc lists them.
#pragma once

#include "amct/export/exporter.h"

namespace amct {

Runtime lmdeploy_runtime();
Runtime vllm_ascend_runtime();
Runtime compressed_tensors_runtime();
Runtime modelopt_runtime();
Runtime tensorrt_llm_runtime();
Runtime sglang_runtime();
Runtime msmodelslim_runtime();
Runtime plain_json_runtime();
Runtime numpy_archive_runtime();

}  // namespace amct
