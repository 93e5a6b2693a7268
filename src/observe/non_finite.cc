#include "observe/non_finite.h"

#include "observe/elements.h"

namespace amct {
namespace {

template <typename Bits, typename IsFinite>
NonFinite find(const TensorView& view, IsFinite finite) {
  // Counting alone vectorises; where the first one stands matters only in the rare case.
  NonFinite found;
  for_each_element<Bits>(view, [&](std::int64_t /*row*/, std::int64_t /*channel*/, Bits bits) {
    found.count += finite(bits) ? 0 : 1;
  });
  if (found.count == 0) return found;
  for_each_element<Bits>(view, [&](std::int64_t row, std::int64_t channel, Bits bits) {
    if (found.first_index < 0 && !finite(bits)) found.first_index = row * view.channels() + channel;
  });
  return found;
}

}  // namespace

NonFinite find_non_finite(const TensorView& view) {
  if (view.dtype == DType::kFloat32) {
    return find<std::uint32_t>(view, [](std::uint32_t bits) { return is_finite(bits); });
  }
  const DType dtype = view.dtype;
  return find<std::uint16_t>(view, [dtype](std::uint16_t bits) { return is_finite(bits, dtype); });
}

}  // namespace amct
