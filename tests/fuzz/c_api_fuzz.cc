// The library for C, with bytes for its arguments: two of them choose sizes, then come shape and
// strides, then a configuration that is written with the names that follow, then factors.
#include "amct/amct.h"

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "files.h"

namespace {

using namespace amct;
using fuzz::Input;

/// What an input does not reach is no error of the library's.
void check(amct_status status) {
  const std::string_view message = amct_last_error();
  if (status == AMCT_INTERNAL_ERROR) std::abort();
  if (status != AMCT_OK && (message.empty() || message.find('\n') != std::string_view::npos))
    std::abort();
}

/// Whether every element lies among `size` ones: the library cannot know how much memory there is.
bool lies_within(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides,
                 std::int64_t size) {
  for (const std::int64_t extent : shape) {
    if (extent <= 0) return true;  // refused, or nothing is read
  }
  std::int64_t reach = 0;
  std::int64_t count = 1;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    std::int64_t steps = 0;
    if (strides[i] < 0 || __builtin_mul_overflow(shape[i] - 1, strides[i], &steps) ||
        __builtin_add_overflow(reach, steps, &reach) || reach >= size)
      return false;
    if (__builtin_mul_overflow(count, shape[i], &count) || count > size) return false;
  }
  return true;
}

/// Whether the library must refuse it, and so may be given it: no machine has that much memory.
bool is_beyond_memory(const std::vector<std::int64_t>& shape,
                      const std::vector<std::int64_t>& strides) {
  __int128 reach = 0;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const __int128 step = strides[i] < 0 ? -static_cast<__int128>(strides[i]) : strides[i];
    if (shape[i] <= 0) return false;
    reach += (static_cast<__int128>(shape[i]) - 1) * step;
    if (reach > (static_cast<__int128>(1) << 100)) return true;
  }
  return reach > (static_cast<__int128>(1) << 62);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(fuzz::text(data, size));
  static const std::vector<float> values(4096, 0.25F);
  const auto sizes = input.number<std::uint8_t>();
  const auto what = input.number<std::uint8_t>();
  std::vector<std::int64_t> shape(sizes % 5U);
  std::vector<std::int64_t> strides(shape.size());
  for (std::int64_t& extent : shape)
    extent = (what & 1U) != 0 ? input.number<std::int64_t>() : input.number<std::int8_t>();
  for (std::int64_t& stride : strides)
    stride = (what & 2U) != 0 ? input.number<std::int64_t>() : input.number<std::int8_t>();
  const amct_tensor tensor{.data = values.data(),
                           .dtype = static_cast<std::int32_t>((sizes / 5U) % 4U),
                           .dims = shape.size(),
                           .shape = shape.data(),
                           .strides = strides.data()};
  const bool may_be_read = lies_within(shape, strides, 4096) || is_beyond_memory(shape, strides);

  const auto choose = [&](std::string* text) {
    *text = input.text();
    return text->empty() ? nullptr : text->c_str();
  };
  std::array<std::string, 5> texts;
  const char* const algorithm = choose(&texts[0]);
  const char* const granularity = choose(&texts[1]);
  const char* const dst_type = choose(&texts[2]);
  const std::array<const char*, 2> layers{choose(&texts[3]), choose(&texts[4])};
  const std::string config = fuzz::folder() + "/c.json";
  const std::string record = fuzz::folder() + "/c.txt";
  std::filesystem::remove(config);
  check(amct_write_config(config.c_str(), layers.data(), layers.size(),
                          1 + input.number<std::int8_t>(), algorithm, granularity,
                          input.number<std::int8_t>(), dst_type));
  amct_session* session = nullptr;
  check(amct_session_open(config.c_str(), record.c_str(), nullptr, &session));
  if (session != nullptr && may_be_read) {
    check(amct_session_observe(session, layers[0], &tensor, nullptr));
    check(amct_session_observe(session, layers[1], &tensor, nullptr));
    check(amct_session_finish(session));
  }
  amct_session_close(session);

  const std::array<float, 4> scales{input.number<float>(), input.number<float>(), 1, 2};
  const std::array<std::int32_t, 4> offsets{input.number<std::int32_t>(), 0, 1, 2};
  const amct_factors factors{.layer = "a",
                             .dst_type = dst_type,
                             .granularity = granularity,
                             .count = what % 5U,
                             .scales = scales.data(),
                             .offsets = offsets.data(),
                             .sink_tokens = 0};
  amct_codec* codec = nullptr;
  check(amct_codec_create(&factors, static_cast<int>(what >> 7U), &codec));
  std::vector<std::uint8_t> codes(8192);
  std::vector<float> read(8192);
  if (codec != nullptr && may_be_read) {
    check(amct_codec_quantize(codec, &tensor, codes.data(), codes.size()));
    std::int64_t count = 1;
    bool fits = true;
    for (const std::int64_t extent : shape)
      fits = fits && extent >= 0 && !__builtin_mul_overflow(count, extent, &count) && count <= 8192;
    if (fits) check(amct_codec_dequantize(codec, codes.data(), codes.size(), &tensor, read.data()));
  }
  amct_codec_close(codec);
  if (!std::filesystem::exists(record)) return 0;
  amct_record* opened = nullptr;
  check(amct_record_open(record.c_str(), &opened));
  for (std::size_t i = 0; i < amct_record_layers(opened); ++i) {
    amct_factors found{};
    check(amct_record_layer(opened, i, &found));
    if (found.count == 0 || std::strlen(found.layer) > size) std::abort();
  }
  amct_record_close(opened);
  std::filesystem::remove(record);
  return 0;
}
