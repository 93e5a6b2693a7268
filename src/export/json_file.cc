#include "export/json_file.h"

#include "amct/core/decimal.h"
#include "amct/core/error.h"
#include "amct/core/file.h"

#include <unordered_set>
#include <vector>

namespace amct {
namespace {

constexpr int kMaxDepth = 64;

}  // namespace

Json parse_json(std::string_view text, const std::string& source) {
  std::vector<std::unordered_set<std::string>> open_objects;
  const auto callback = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth) throw ValueError(source + ": JSON is nested too deeply");
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key) {
      // Readers differ in which of two they take, so there is no telling what such a file says.
      const auto& key = parsed.get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second) {
        throw ValueError(source + ": the key " + parsed.dump() + " stands twice");
      }
    }
    return true;
  };
  try {
    return Json::parse(text, callback);
  } catch (const Json::exception& error) {
    // nlohmann's text: "[json.exception.parse_error.101] parse error at line 3, column 7: ..."
    std::string what = error.what();
    if (const std::size_t start = what.find("] "); start != std::string::npos) {
      what.erase(0, start + 2);
    }
    for (char& c : what) {
      if (static_cast<unsigned char>(c) < ' ') c = ' ';  // of the text it cites
    }
    throw ValueError(source + ": not JSON: " + what);
  }
}

Json read_json_object(const std::string& path) {
  Json json = parse_json(read_text_file(path, kMaxJsonSize), path);
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
