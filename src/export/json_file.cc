#include "export/json_file.h"

#include "amct/core/decimal.h"
#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/core/limits.h"

#include <utility>

#include "core/json_builder.h"

namespace amct {
namespace {

struct FileObserver {
  const std::string& source;

  void on_level(std::size_t levels) const {
    if (levels > kMaxJsonDepth) {
      throw ValueError(source + ": JSON is nested too deeply, more than " +
                       std::to_string(kMaxJsonDepth) + " levels");
    }
  }
  void on_key(std::size_t /*levels*/, const std::string& key, bool is_new) const {
    // Readers differ in which of two they take, so there is no telling what such a file says.
    if (!is_new) throw ValueError(source + ": the key " + Json(key).dump() + " stands twice");
  }
};

}  // namespace

Json parse_json(std::string_view text, const std::string& source) {
  const FileObserver observer{source};
  JsonBuilder<Json, const FileObserver> builder(observer);
  if (!Json::sax_parse(text, &builder)) throw ValueError(source + ": not JSON: " + builder.error());
  return std::move(builder.value());
}

Json read_json_object(const std::string& path) {
  Json json = parse_json(read_text_file(path, kMaxJsonFileSize), path);
  if (!json.is_object()) {
    throw ValueError(path + ": a JSON object is needed, not " + json.type_name());
  }
  return json;
}

std::string to_json_text(const Json& json) {
  // Paths in reports need not be UTF-8.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json json_number(float value) {
  return Json::parse(shortest_decimal(value));  // the double that is written with these digits
}

const Json& member(const Json& json, std::string_view key) {
  static const Json kNull;
  if (!json.is_object()) return kNull;
  const auto found = json.find(std::string(key));
  return found == json.end() ? kNull : *found;
}

}  // namespace amct
