#include "amct/store/codes.h"

#include "amct/core/error.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "kernels/codes.h"

namespace amct {
namespace {

using kernels::CodeFormat;
using kernels::RowFactors;
using kernels::Rows;

// Values of a task: a hand-over to another thread does not show, and half a megabyte stays in L2.
constexpr std::int64_t kTask = std::int64_t{1} << 17;
// Long rows are cut into pieces of so many values, so that threads can share one.
constexpr std::int64_t kPiece = std::int64_t{1} << 14;

/// A dimension of a tensor and its codes, with what a step along it moves in each.
struct Axis {
  std::int64_t size;
  std::int64_t values;   // bytes
  std::int64_t codes;    // bytes
  std::int64_t factors;  // entries
};

/// Byte offsets, and that of the factors.
struct Place {
  std::int64_t values = 0;
  std::int64_t codes = 0;
  std::int64_t factors = 0;

  void step(const Axis& axis, std::int64_t steps) {
    values += steps * axis.values;
    codes += steps * axis.codes;
    factors += steps * axis.factors;
  }
};

void check_codes(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides,
                 const void* data, const std::vector<std::int64_t>& wanted) {
  if (shape != wanted) {
    throw ValueError("codes of shape " + to_string(shape) + " where the tensor's have " +
                     to_string(wanted));
  }
  if (strides.size() != shape.size()) {
    throw ValueError("codes of shape " + to_string(shape) + " have " +
                     std::to_string(strides.size()) + " strides; one a dimension is needed");
  }
  const bool empty = std::ranges::count(shape, 0) > 0;
  if (!empty && data == nullptr)
    throw ValueError("codes of shape " + to_string(shape) + " have a null data pointer");
  if (!strides.empty() && shape.back() > 1 && strides.back() != 1)
    throw ValueError("the bytes of a row of codes must lie one after the other");
  std::int64_t reach = 0;
  for (std::size_t i = 0; !empty && i < shape.size(); ++i) {
    std::int64_t steps = 0;
    if (shape[i] == 1) continue;
    // Of a negative one, the distance below 0; that of the least number has no positive twin.
    const std::int64_t stride = strides[i] > 0 ? -strides[i] : strides[i];
    if (__builtin_mul_overflow(shape[i] - 1, stride, &steps) ||
        __builtin_add_overflow(reach, steps, &reach) ||
        reach == std::numeric_limits<std::int64_t>::min()) {
      throw ValueError("codes of shape " + to_string(shape) + " have strides " +
                       to_string(strides) + ", which lead out of memory");
    }
  }
}

std::string count_of(std::int64_t count, Granularity granularity) {
  return std::to_string(count) + " factors " + std::string(name_of(granularity));
}

}  // namespace

/// A tensor and its codes, cut into runs: neighbouring values with one pair of factors, or with one
/// each that lie one after the other.
class Codec::Work {
 public:
  /// Shape and strides (in elements) are those of the tensor, `code_strides` in bytes.
  Work(const Codec& codec, DType dtype, const std::vector<std::int64_t>& shape,
       const std::vector<std::int64_t>& strides, const std::vector<std::int64_t>& code_strides)
      : format_(kernels::code_format(*codec.grid_)),
        dtype_(dtype),
        element_(static_cast<std::int64_t>(size_of(dtype))) {
    width_ = shape.empty() ? 1 : shape.back();
    const std::int64_t per_head = take_factors(codec, shape);
    if (std::ranges::count(shape, 0) > 0) return;  // nothing is done, and strides say nothing
    channel_stride_ = (width_ == 1 ? 1 : strides.back()) * element_;  // that of one says nothing
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) {
      const bool heads = i + 3 == shape.size();
      if (shape[i] != 1)
        axes_.push_back({shape[i], strides[i] * element_, code_strides[i], heads ? per_head : 0});
    }
    join();
  }

  bool is_gathered() const { return channel_stride_ != element_; }

  /// Calls `run(factors, rows, place)` for all of it, in tasks.
  template <typename Run>
  void for_each(const Run& run) const {
    // Gathered rows go through a buffer, piece by piece.
    const std::int64_t piece = is_gathered() ? kGathered : kPiece;
    const std::int64_t pieces = (width_ + piece - 1) / piece;
    std::int64_t lines = rows_.size;
    for (const Axis& axis : axes_) lines *= axis.size;
    const auto part = [&](std::int64_t begin, std::int64_t end) {
      if (pieces > 1) {
        for (std::int64_t i = begin; i < end; ++i)
          run_lines(run, i / pieces, 1, i % pieces * piece, piece);
      } else {
        run_lines(run, begin, end - begin, 0, width_);
      }
    };
    const std::int64_t units = lines * pieces;
    const std::int64_t grain = std::max<std::int64_t>(1, kTask / std::min(width_, piece));
    if (units <= grain) {
      part(0, units);
      return;
    }
    tbb::parallel_for(
        tbb::blocked_range<std::int64_t>(0, units, static_cast<std::size_t>(grain)),
        [&](const tbb::blocked_range<std::int64_t>& range) { part(range.begin(), range.end()); });
  }

  static constexpr std::int64_t kGathered = 1024;

  const CodeFormat& format() const { return format_; }
  DType dtype() const { return dtype_; }
  std::int64_t channel_stride() const { return channel_stride_; }

 private:
  /// Finds the factors; returns what a step to the next head moves in them.
  std::int64_t take_factors(const Codec& codec, const std::vector<std::int64_t>& shape) {
    factors_ = codec.factors_.get();
    per_channel_ = codec.granularity_ == Granularity::kPerChannel;
    if (codec.granularity_ == Granularity::kPerTensor) return 0;
    const auto refuse = [&](const std::string& what) {
      throw ValueError(count_of(codec.count_, codec.granularity_) +
                       " do not fit a tensor of shape " + to_string(shape) + ", " + what);
    };
    if (codec.layout_ == HeadLayout::kInChannels) {
      if (per_channel_ ? width_ != codec.count_ : width_ % codec.count_ != 0)
        refuse("of " + std::to_string(width_) + " channels");
      const bool is_empty = std::ranges::count(shape, 0) > 0;
      if (!per_channel_ && !is_empty) expand(codec);
      return 0;
    }
    if (shape.size() < 3) refuse("which needs dimensions of heads, tokens and channels of a head");
    const std::int64_t heads = shape[shape.size() - 3];
    std::int64_t count = heads;
    if (per_channel_ && __builtin_mul_overflow(heads, width_, &count)) count = -1;
    if (codec.count_ != count)
      refuse("of " + std::to_string(heads) + " heads of " + std::to_string(width_) + " channels");
    return per_channel_ ? width_ : 1;
  }

  /// Factors of heads that lie side by side, for each channel.
  void expand(const Codec& codec) {
    const auto channels = static_cast<std::size_t>(width_ / codec.count_);
    std::vector<float> scales;
    std::vector<float> offsets;
    for (std::size_t head = 0; std::cmp_less(head, codec.count_); ++head) {
      scales.insert(scales.end(), channels, codec.factors_->scales()[head]);
      offsets.insert(offsets.end(), channels, codec.factors_->offsets()[head]);
    }
    factors_ = &expanded_.emplace(scales, offsets);
    per_channel_ = true;
  }

  /// Makes runs as long as they get, then rows of equally distant ones.
  void join() {
    const bool packed = format_.kind == CodeFormat::Kind::kInt4;
    while (!axes_.empty() && !is_gathered() && (!packed || width_ % 2 == 0)) {
      const Axis& axis = axes_.back();
      if (axis.values != width_ * element_ || axis.codes != code_bytes(width_)) break;
      if (axis.factors != (per_channel_ ? width_ : 0)) break;
      width_ *= axis.size;
      axes_.pop_back();
    }
    if (!axes_.empty() && axes_.back().factors == 0) {
      rows_ = axes_.back();
      axes_.pop_back();
    }
  }

  std::int64_t code_bytes(std::int64_t width) const {
    return static_cast<std::int64_t>(
        kernels::code_bytes(format_.kind, static_cast<std::size_t>(width)));
  }

  /// Runs `count` lines (rows of all axes, in order), or a piece of each from `channel` on.
  template <typename Run>
  void run_lines(const Run& run, std::int64_t line, std::int64_t count, std::int64_t channel,
                 std::int64_t piece) const {
    while (count > 0) {
      const std::int64_t row = line % rows_.size;
      const std::int64_t here = std::min(count, rows_.size - row);
      Place place;
      place.step(rows_, row);
      std::int64_t rest = line / rows_.size;
      for (std::size_t i = axes_.size(); i-- > 0;) {
        place.step(axes_[i], rest % axes_[i].size);
        rest /= axes_[i].size;
      }
      place.values += channel * channel_stride_;
      place.codes += code_bytes(channel);
      if (per_channel_) place.factors += channel;
      run(RowFactors{factors_, static_cast<std::size_t>(place.factors), per_channel_},
          Rows{.count = static_cast<std::size_t>(here),
               .width = static_cast<std::size_t>(std::min(piece, width_ - channel)),
               .value_stride = rows_.values,
               .code_stride = rows_.codes},
          place);
      line += here;
      count -= here;
    }
  }

  CodeFormat format_;
  DType dtype_;
  std::int64_t element_;
  std::int64_t width_;
  std::int64_t channel_stride_;
  Axis rows_{1, 0, 0, 0};
  std::vector<Axis> axes_;
  const kernels::FactorTable* factors_ = nullptr;
  std::optional<kernels::FactorTable> expanded_;
  bool per_channel_ = false;
};

Codec::Codec(const Grid& grid, std::span<const QuantParams> params, Granularity granularity,
             HeadLayout layout)
    : grid_(&grid_named(grid.name, "a number format")),
      granularity_(granularity),
      layout_(layout),
      count_(static_cast<std::int64_t>(params.size())) {
  if (params.empty() || (granularity == Granularity::kPerTensor && params.size() != 1))
    throw ValueError(count_of(count_, granularity) + " say nothing; one or more are needed");
  std::vector<float> scales;
  std::vector<float> offsets;
  for (const QuantParams& pair : params) {
    if (!std::isfinite(pair.scale) || pair.scale <= 0)
      throw ValueError("scale " + std::to_string(pair.scale) + " is not positive and finite");
    if (std::abs(static_cast<std::int64_t>(pair.offset)) > kernels::kLargestOffset)
      throw ValueError("offset " + std::to_string(pair.offset) + " lies beyond 2^22");
    if (grid_->is_float() && pair.offset != 0)
      throw ValueError(std::string(grid_->name) + " has no offsets");
    scales.push_back(pair.scale);
    offsets.push_back(static_cast<float>(pair.offset));
  }
  factors_ = std::make_shared<kernels::FactorTable>(scales, offsets);
}

std::int64_t Codec::row_bytes(std::int64_t channels) const {
  return grid_->bits == 4 ? (channels + 1) / 2 : channels;
}

void Codec::quantize(const TensorView& x, const MutableCodesView& codes) const {
  x.validate();
  std::vector<std::int64_t> wanted = x.shape;
  if (wanted.empty()) wanted.push_back(1);
  wanted.back() = row_bytes(wanted.back());
  check_codes(codes.shape, codes.strides, codes.data, wanted);
  const Work work(*this, x.dtype, x.shape, x.strides, codes.strides);
  if (x.size() == 0) return;
  const auto* values = static_cast<const std::byte*>(x.data);
  work.for_each([&](const RowFactors& factors, const Rows& rows, const Place& place) {
    const std::byte* from = values + place.values;
    std::uint8_t* to = codes.data + place.codes;
    if (!work.is_gathered()) {
      kernels::quantize_rows(work.format(), factors, rows, x.dtype, from, to);
      return;
    }
    alignas(64) std::array<std::byte, Work::kGathered * sizeof(float)> gathered;
    const std::size_t size = size_of(x.dtype);
    for (std::size_t row = 0; row < rows.count; ++row) {
      for (std::size_t c = 0; c < rows.width; ++c) {
        std::memcpy(gathered.data() + c * size,
                    from + static_cast<std::int64_t>(c) * work.channel_stride(), size);
      }
      kernels::quantize_rows(work.format(), factors, {1, rows.width, 0, 0}, x.dtype,
                             gathered.data(), to);
      from += rows.value_stride;
      to += rows.code_stride;
    }
  });
}

std::vector<std::uint8_t> Codec::quantize(const TensorView& x) const {
  MutableCodesView view{nullptr, x.shape, std::vector<std::int64_t>(x.shape.size(), 1)};
  if (x.shape.empty()) view = {nullptr, {1}, {1}};
  view.shape.back() = row_bytes(view.shape.back());
  x.validate();
  std::int64_t size = 1;
  if (x.size() == 0) {
    size = 0;  // its other sizes may multiply beyond 63 bits
  } else {
    for (std::size_t i = view.shape.size(); i-- > 0;) {
      view.strides[i] = size;
      size *= view.shape[i];
    }
  }
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(size));
  view.data = codes.data();
  quantize(x, view);
  return codes;
}

void Codec::dequantize(const CodesView& codes, const MutableTensorView& out) const {
  const TensorView same{out.data, out.dtype, out.shape, out.strides};
  same.validate();
  if (same.channels() > 1 && out.strides.back() != 1)
    throw ValueError("the channels of the tensor that codes are read to must lie side by side");
  std::vector<std::int64_t> wanted = out.shape;
  if (wanted.empty()) wanted.push_back(1);
  wanted.back() = row_bytes(wanted.back());
  check_codes(codes.shape, codes.strides, codes.data, wanted);
  const Work work(*this, out.dtype, out.shape, out.strides, codes.strides);
  if (same.size() == 0) return;
  auto* values = static_cast<std::byte*>(out.data);
  work.for_each([&](const RowFactors& factors, const Rows& rows, const Place& place) {
    kernels::dequantize_rows(work.format(), factors, rows, out.dtype, codes.data + place.codes,
                             values + place.values);
  });
}

}  // namespace amct
