// JSON of files, parsed with limits. nlohmann's own parser with a callback looks through all of an
// object at the end of each object in it, which is quadratic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace amct {

/// Builds a value of type Json, a nlohmann::basic_json, from the events of Json::sax_parse.
/// `observer` throws where it does not like one: on_level(levels) is told at each `{` and `[` how
/// many are open with it, on_key(levels, key, is_new) at each key whether its object had none of
/// it.
template <typename Json, typename Observer>
class JsonBuilder {
 public:
  explicit JsonBuilder(Observer& observer) : observer_(observer) {}

  /// The value; meaningful once all was parsed without an error.
  Json& value() { return root_; }
  /// What the parser says is wrong with the text.
  const std::string& error() const { return error_; }

  // What sax_parse calls.
  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(std::int64_t value) { return add(value); }
  bool number_unsigned(std::uint64_t value) { return add(value); }
  bool number_float(double value, const std::string& /*text*/) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(Json::binary_t& /*value*/) { return false; }  // no JSON has any
  bool start_object(std::size_t /*size*/) { return open(Json::object()); }
  bool key(std::string& key) {
    const auto [member, is_new] = open_.back()->emplace(key, nullptr);
    observer_.on_key(open_.size(), key, is_new);
    member_ = &*member;
    return true;
  }
  bool end_object() { return close(); }
  bool start_array(std::size_t /*size*/) { return open(Json::array()); }
  bool end_array() { return close(); }
  bool parse_error(std::size_t /*position*/, const std::string& /*token*/,
                   const nlohmann::detail::exception& error) {
    // nlohmann's text: "[json.exception.parse_error.101] parse error at line 3, column 7: ..."
    const std::string_view what = error.what();
    const std::size_t start = what.find("] ");
    error_ = start == std::string_view::npos ? what : what.substr(start + 2);
    return false;
  }

 private:
  /// Puts a value into its place, which is given back.
  template <typename Value>
  Json* put(Value&& value) {
    if (open_.empty()) return &(root_ = std::forward<Value>(value));
    if (open_.back()->is_object()) return &(*member_ = std::forward<Value>(value));
    open_.back()->push_back(std::forward<Value>(value));
    return &open_.back()->back();
  }
  template <typename Value>
  bool add(Value&& value) {
    put(Json(std::forward<Value>(value)));
    return true;
  }
  bool open(Json&& container) {
    observer_.on_level(open_.size() + 1);
    open_.push_back(put(std::move(container)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  Observer& observer_;
  Json root_;
  std::vector<Json*> open_;  // only the last one grows, so that none of them moves
  Json* member_ = nullptr;   // whose key was read last
  std::string error_;
};

}  // namespace amct
