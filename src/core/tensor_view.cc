#include "amct/core/tensor_view.h"

#include "amct/core/error.h"

#include <cstdint>
#include <limits>
#include <string>
#include <utility>

namespace amct {
namespace {

/// Product of shape[0 .. end), throwing ValueError on a negative size or an overflow.
std::int64_t product(const std::vector<std::int64_t>& shape, std::size_t end) {
  std::int64_t result = 1;
  bool empty = false;
  for (std::size_t i = 0; i < end; ++i) {
    if (shape[i] < 0)
      throw ValueError("tensor of shape " + to_string(shape) + " has a negative size");
    empty = empty || shape[i] == 0;
  }
  if (empty) return 0;
  for (std::size_t i = 0; i < end; ++i) {
    if (result > std::numeric_limits<std::int64_t>::max() / shape[i]) {
      throw ValueError("tensor of shape " + to_string(shape) + " has more than 2^63 - 1 elements");
    }
    result *= shape[i];
  }
  return result;
}

/// Whether all elements have addresses, which lie within 63 bits of each other.
bool fits_memory(const TensorView& view) {
  const auto element_size = static_cast<std::int64_t>(size_of(view.dtype));
  std::int64_t most = std::numeric_limits<std::int64_t>::max() / element_size - 1;
  std::int64_t below = 0;  // elements before the first one, and after it
  std::int64_t above = 0;
  for (std::size_t i = 0; i < view.shape.size(); ++i) {
    const std::int64_t steps = view.shape[i] - 1;
    if (steps == 0) continue;
    const std::int64_t stride = view.strides[i];
    const std::int64_t limit = most / steps;
    if (stride > limit || stride < -limit) return false;
    const std::int64_t length = steps * (stride < 0 ? -stride : stride);
    most -= length;
    (stride < 0 ? below : above) += length;
  }
  const auto first = reinterpret_cast<std::uintptr_t>(view.data);
  return std::cmp_less(below * element_size, first) &&
         std::cmp_less_equal((above + 1) * element_size,
                             std::numeric_limits<std::uintptr_t>::max() - first);
}

struct Dimension {
  std::int64_t size;
  std::int64_t stride;
};

/// The dimensions but the last, without those of size 1, neighbours joined where one stride serves
/// both.
std::vector<Dimension> joined_outer_dimensions(const TensorView& view) {
  std::vector<Dimension> joined;
  for (std::size_t i = 0; i + 1 < view.shape.size(); ++i) {
    if (view.shape[i] == 1) continue;
    const Dimension next{view.shape[i], view.strides[i]};
    if (!joined.empty() && joined.back().stride == next.size * next.stride) {
      joined.back() = {joined.back().size * next.size, next.stride};
    } else {
      joined.push_back(next);
    }
  }
  return joined;
}

}  // namespace

TensorView TensorView::contiguous(const void* data, DType dtype, std::vector<std::int64_t> shape) {
  const bool empty = product(shape, shape.size()) == 0;
  std::vector<std::int64_t> strides(shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    // No element, no step: the other sizes of an empty tensor may multiply beyond 63 bits.
    if (!empty) stride *= shape[i];
  }
  return {data, dtype, std::move(shape), std::move(strides)};
}

std::int64_t TensorView::size() const { return product(shape, shape.size()); }

std::int64_t TensorView::rows() const {
  return shape.empty() ? 1 : product(shape, shape.size() - 1);
}

void TensorView::validate() const {
  if (strides.size() != shape.size()) {
    throw ValueError("tensor of shape " + to_string(shape) + " has " +
                     std::to_string(strides.size()) + " strides; one a dimension is needed");
  }
  if (size() > 0 && data == nullptr) {
    throw ValueError("tensor of shape " + to_string(shape) + " has a null data pointer");
  }
  if (size() > 0 && !fits_memory(*this)) {
    throw ValueError("tensor of shape " + to_string(shape) + " has strides " + to_string(strides) +
                     ", which lead out of memory");
  }
}

std::string to_string(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

std::vector<Block> blocks_of(const TensorView& view) {
  if (view.size() == 0) return {};
  std::vector<Dimension> outer = joined_outer_dimensions(view);
  const Dimension rows = outer.empty() ? Dimension{1, 0} : outer.back();
  if (!outer.empty()) outer.pop_back();

  const auto* base = static_cast<const std::byte*>(view.data);
  const auto element_size = static_cast<std::int64_t>(size_of(view.dtype));
  const std::int64_t channel_stride = view.strides.empty() ? 1 : view.strides.back();
  std::vector<Block> blocks;
  std::vector<std::int64_t> index(outer.size(), 0);
  for (std::int64_t first_row = 0;; first_row += rows.size) {
    std::int64_t offset = 0;
    for (std::size_t i = 0; i < outer.size(); ++i) offset += index[i] * outer[i].stride;
    blocks.push_back({base + offset * element_size, first_row, rows.size, rows.stride,
                      view.channels(), channel_stride});
    std::size_t i = outer.size();
    while (i > 0 && ++index[i - 1] == outer[i - 1].size) index[--i] = 0;
    if (i == 0) return blocks;
  }
}

}  // namespace amct
