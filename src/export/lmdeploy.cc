// lmdeploy on Ascend, through dlinfer: the text of a record, read by one regular expression.
#include "amct/core/error.h"
#include "amct/core/file.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <utility>

#include "export/factors.h"
#include "export/runtimes.h"
#include "export/verification.h"

namespace amct {
namespace {

/// The first line of what is written; such a file's offsets are added, not subtracted.
constexpr std::string_view kHeading =
    "# For lmdeploy on Ascend, which adds offsets: x' = (q + offset) * scale, unlike in a "
    "record.\n";

/// A name in quotes, everything but plain characters escaped: none may read as a field.
std::string quoted(const std::string& name) {
  std::string text = "\"";
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                       c == '.' || c == '_' || c == '-' || c == '/';
    if (plain) {
      text += c;
    } else {
      text += '\\';
      for (const int shift : {6, 3, 0}) text += static_cast<char>('0' + ((byte >> shift) & 7));
    }
  }
  return text + '"';
}

std::string entry_of(const LayerRecord& layer) {
  const QuantParams& params = layer.params.front();
  return "record {\n  key: " + quoted(layer.name) +
         "\n  kv_cache_value {\n    scale: " + plain_decimal(params.scale) +
         "\n    offset: " + std::to_string(-static_cast<std::int64_t>(params.offset)) +
         "\n  }\n}\n";
}

ExportReport write(std::span<const LayerRecord> layers, const ExportOptions& options) {
  const Runtime runtime = lmdeploy_runtime();
  require_output_file(runtime, options);
  ExportJob job = start_export(runtime, layers, options);
  warn_of_rounding(options, &job);
  std::string text(kHeading);
  for (const AttentionLayer& layer : job.layers)
    text += entry_of(layer.key) + entry_of(layer.value);
  write_reported(options.output, text,
                 "factors of " + std::to_string(job.layers.size()) +
                     " layers as record text, offsets with their sign turned",
                 &job.report);
  std::error_code ignored;
  job.report.notes.push_back("start lmdeploy with ASCEND_QUANT_RECORD_FILE=" +
                             std::filesystem::absolute(options.output, ignored).string() +
                             " and device_type='ascend', eager_mode=True, quant_policy=8");
  job.report.notes.emplace_back(
      "dlinfer from pull request 276 (November 2025) on reads the quantized cache without these "
      "factors in decoding, from 282 on everywhere; use a version before");
  job.report.notes.emplace_back(
      "lmdeploy counts the caches of a worker: with pipeline parallelism no file fits them all");
  return std::move(job.report);
}

/// A match of the reader's expression, and the key that stands before it.
struct Pair {
  std::string scale;
  std::string offset;
  std::string key;
};

/// Walks the text as the expression `scale:\s*([\d\.\-]+)\s*offset:\s*(-?\d+)` does, which nothing
/// in it makes go back over what it passed.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  std::vector<Pair> pairs() {
    std::vector<Pair> found;
    while (at_ < text_.size()) {
      read_key();
      const std::size_t start = at_;
      Pair pair;
      if (take("scale:") && take_number(&pair.scale, /*point=*/true) && take("offset:") &&
          take_number(&pair.offset, /*point=*/false)) {
        pair.key = key_;
        found.push_back(std::move(pair));
      } else {
        at_ = start + 1;
      }
    }
    return found;
  }

 private:
  bool take(std::string_view word) {
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }
  void skip_space() {
    while (at_ < text_.size() &&
           std::string_view(" \t\n\r\f\v").find(text_[at_]) != std::string::npos) {
      ++at_;
    }
  }
  /// \s* number \s*, the number with points and any number of signs, or a plain integer.
  bool take_number(std::string* number, bool point) {
    skip_space();
    const std::size_t start = at_;
    const auto belongs = [&](char c) {
      if (c == '-') return point || at_ == start;
      return (c == '.' && point) || (c >= '0' && c <= '9');
    };
    while (at_ < text_.size() && belongs(text_[at_])) ++at_;
    *number = text_.substr(start, at_ - start);
    if (number->empty() || (!point && *number == "-")) return false;
    if (point) skip_space();
    return true;
  }
  /// Remembers the name of a key that begins here; the expression knows nothing of it.
  void read_key() {
    constexpr std::string_view kKey = "key:";
    const std::string_view rest = text_.substr(at_);
    if (!rest.starts_with(kKey)) return;
    const std::size_t open = rest.find_first_not_of(" \t", kKey.size());
    if (open == std::string_view::npos || (rest[open] != '"' && rest[open] != '\'')) return;
    std::string name;
    for (std::size_t i = open + 1; i < rest.size() && rest[i] != '\n'; ++i) {
      if (rest[i] == rest[open]) {
        key_ = std::move(name);
        return;
      }
      if (rest[i] == '\\') {
        name += unescaped(rest.substr(i + 1), &i);
      } else {
        name += rest[i];
      }
    }
  }
  /// The character that stands behind a backslash: up to three octal digits, or itself. Moves `*at`
  /// to its last character.
  static char unescaped(std::string_view rest, std::size_t* at) {
    const auto is_octal = [](char c) { return c >= '0' && c <= '7'; };
    int code = 0;
    std::size_t digits = 0;
    while (digits < 3 && digits < rest.size() && is_octal(rest[digits])) {
      code = 8 * code + (rest[digits++] - '0');
    }
    *at += std::max<std::size_t>(digits, 1);
    if (digits > 0) return static_cast<char>(code);
    return rest.empty() ? '\0' : rest.front();
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::string key_;
};

/// What Python's float() makes of it, or nothing.
std::optional<double> to_float(const std::string& text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (result.ptr != end || result.ec != std::errc()) return std::nullopt;
  return value;
}

/// Compares what was matched to what the file says as a record.
void check_as_record(Verification& v, const std::string& path, const std::vector<Pair>& pairs) {
  std::vector<LayerRecord> layers;
  try {
    layers = read_record(path);
  } catch (const ValueError& error) {
    v.note(std::string("not a record otherwise: ") + error.what());
    return;
  }
  std::map<std::string, std::size_t> matches;
  for (const Pair& pair : pairs) ++matches[pair.key];
  for (const LayerRecord& layer : layers) {
    const std::size_t count = matches[layer.name];
    if (layer.params.size() > 1 && count > 0) {
      v.wrong(layer.name, "scale " + range_text({static_cast<double>(layer.params.back().scale)}),
              "of " + std::to_string(layer.params.size()) +
                  " factors the last scale and the first offset alone are read");
    } else if (count == 0) {
      v.wrong(
          layer.name, "",
          "passed over: an exponent, or something between scale and offset, does not match; the "
          "layers behind it take each other's factors");
    }
  }
  std::string reason;
  const std::vector<LayerPlace> places = layer_places(layers, &reason);
  if (places.empty()) {
    v.note("the order of the layers cannot be checked: " + reason);
    return;
  }
  for (std::size_t i = 0; i + 1 < places.size(); ++i) {
    const bool in_order = std::pair(places[i].index, places[i].role) <
                          std::pair(places[i + 1].index, places[i + 1].role);
    if (in_order) continue;
    v.wrong(layers[i + 1].name, "",
            "stands after '" + layers[i].name +
                "': layers are told apart by their order alone, key and value of each in turn");
    break;
  }
}

/// How many caches the pairs are for: told, or what the layers of the record or the file say.
std::int64_t cache_count(const Verification& v, std::size_t pairs) {
  if (v.model.layers) return *v.model.layers;
  if (!v.record.empty()) return static_cast<std::int64_t>(v.record.size());
  return static_cast<std::int64_t>(pairs / 2);
}

void add_layer(Verification& v, std::size_t ordinal, KVRole role, const Pair& pair) {
  const std::optional<double> scale = to_float(pair.scale);
  const std::optional<double> zero = to_float(pair.offset);
  if (!scale || !zero) {
    v.fatal(pair.key, "'" + pair.scale + "' is no number for Python: ValueError");
    return;
  }
  EffectiveFactors factors;
  factors.layer =
      ordinal < v.record.size() ? v.record[ordinal].index : static_cast<std::int64_t>(ordinal);
  factors.role = role;
  factors.source = pair.key;
  check_scales(v, pair.key, {*scale});
  factors.scale = rounded_scales(v, pair.key, {*scale});
  factors.offset = {0.0 - round_to(v.dtype, *zero)};  // read: (q + zero) * scale
  factors.precision = precision_of(v.dtype);
  v.report.layers.push_back(std::move(factors));
}

VerifyReport verify(const std::string& path, const VerifyOptions& options) {
  Verification v = start_verification(lmdeploy_runtime(), path, options);
  if (folder_exists(path)) {
    v.fatal("", "lmdeploy reads one file, not a folder");
    return finish(std::move(v));
  }
  std::string text;
  try {
    text = read_text_file(path, kMaxJsonFileSize);
  } catch (const ValueError& error) {
    v.fatal("", error.what());
    return finish(std::move(v));
  }
  const std::vector<Pair> pairs = Scanner(text).pairs();
  check_as_record(v, path, pairs);
  const std::int64_t caches = cache_count(v, pairs.size());
  const bool shared = std::cmp_equal(pairs.size(), caches);
  if (pairs.empty() || (!shared && std::cmp_not_equal(pairs.size(), 2 * caches))) {
    v.fatal("", std::to_string(pairs.size()) + " pairs of scale and offset match, for " +
                    std::to_string(caches) + " caches: ValueError");
    return finish(std::move(v));
  }
  if (shared) v.wrong("", "", "as many pairs as layers: keys and values share their factors");
  bool has_offset = false;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    v.used(pairs[i].key, "scale " + pairs[i].scale + ", offset " + pairs[i].offset,
           "pair " + std::to_string(i));
    if (shared || i % 2 == 0) add_layer(v, shared ? i : i / 2, KVRole::kKey, pairs[i]);
    if (shared || i % 2 == 1) add_layer(v, shared ? i : i / 2, KVRole::kValue, pairs[i]);
    has_offset = has_offset || to_float(pairs[i].offset).value_or(0) != 0;
  }
  if (has_offset && !text.starts_with(kHeading)) {
    v.wrong("", "",
            "offsets are added: x' = (q + offset) * scale; a record's are to be subtracted, so if "
            "this is one, every offset has the wrong sign");
  }
  v.note("factors are kept in " + std::string(name_of(v.dtype)) +
         (v.model.dtype ? "" : ", as far as is known"));
  v.note(
      "dlinfer from pull request 276 (November 2025) on reads the quantized cache without these "
      "factors");
  return finish(std::move(v));
}

}  // namespace

Runtime lmdeploy_runtime() {
  return {.name = "lmdeploy",
          .summary = "lmdeploy on Ascend (quant_policy 8): one text file, INT8 per tensor",
          .readers = "lmdeploy 0.18.0, dlinfer a50184e",
          .output = OutputKind::kFile,
          .capability = {.grids = {kInt8},
                         .granularities = {Granularity::kPerTensor},
                         .with_offset = true},
          .write = write,
          .verify = verify};
}

}  // namespace amct
