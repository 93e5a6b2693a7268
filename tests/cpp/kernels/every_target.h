// Running a check on every instruction set that this machine has.
#pragma once

#include <cstdint>
#include <string>

#include <gtest/gtest.h>
#include <hwy/targets.h>

namespace amct::support {

/// Calls check() once for each instruction set, the kernels being dispatched to it.
template <typename Check>
void on_every_target(Check check) {
  const std::int64_t supported = hwy::SupportedTargets();
  for (std::int64_t targets = supported; targets != 0; targets &= targets - 1) {
    const std::int64_t target = targets & -targets;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    check();
    hwy::SetSupportedTargetsForTest(0);
  }
}

}  // namespace amct::support
