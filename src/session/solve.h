// From what a layer's observer saw to its factors.
#pragma once

#include "amct/config/calibration_config.h"
#include "amct/observe/observer.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

namespace amct {

/// Searches every group of a layer that has seen all its batches; on several threads where there
/// are many. Fills everything of the result but observe_seconds. Throws StateError for a group
/// without a finite value.
LayerResult solve(const LayerConfig& config, const Algorithm& algorithm, bool with_offset,
                  const Observer& observer);

/// What goes into the record of a result.
LayerRecord record_of(const LayerResult& result);

}  // namespace amct
