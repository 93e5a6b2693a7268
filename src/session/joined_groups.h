// Groups of a coarser granularity than a layer was observed with.
#pragma once

#include "amct/core/granularity.h"
#include "amct/observe/observer.h"

#include <cstddef>
#include <cstdint>
#include <span>

namespace amct {

/// How many neighbouring groups of the observer make one group of `wanted`; `head_num` is the
/// number of heads, per head. Throws ValueError where `wanted` is finer than what was observed,
/// StateError where heads do not divide the channels.
std::size_t groups_joined(Granularity wanted, std::int64_t head_num, const Observer& observer);

/// Calls visit(group, values) for every group of so many joined ones, on several threads at once.
/// With weights, one for each of the observer's groups, a value comes as often as its own weighs
/// beside the others that it is joined with, in whole numbers of 1 to 1024.
void visit_joined(const Observer& observer, std::size_t joined, const Observer::Visit& visit,
                  std::span<const std::uint64_t> weights = {});

}  // namespace amct
