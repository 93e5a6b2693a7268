// JSON files of other programs: read with limits, changed in places, written back in their order.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include <nlohmann/json.hpp>

namespace amct {

/// An object that keeps the order of its keys, as nlohmann::ordered_map does, but finds them by
/// hash: the index of a large checkpoint has 100,000, which took 9 s one after another. The index
/// is made when a key is looked for, so an object may not be read by several threads at once.
template <class Key, class T, class Less, class Allocator>
class IndexedMap : public nlohmann::ordered_map<Key, T, Less, Allocator> {
  using Base = nlohmann::ordered_map<Key, T, Less, Allocator>;

 public:
  using Base::Base;
  using typename Base::const_iterator;
  using typename Base::iterator;
  using typename Base::size_type;

  template <class K>
  std::pair<iterator, bool> emplace(K&& key, T&& value) {
    const auto found = find(key);
    if (found != this->end()) return {found, false};
    Base::Container::emplace_back(std::forward<K>(key), std::move(value));
    if (!positions_.empty()) positions_.emplace(this->back().first, this->size() - 1);
    return {std::prev(this->end()), true};
  }
  template <class K>
  T& operator[](K&& key) {
    return emplace(std::forward<K>(key), T{}).first->second;
  }
  template <class K>
  const T& operator[](const K& key) const {
    return find(key)->second;
  }
  template <class K>
  iterator find(const K& key) {
    return this->begin() + position(key);
  }
  template <class K>
  const_iterator find(const K& key) const {
    return this->begin() + position(key);
  }
  template <class K>
  size_type count(const K& key) const {
    return find(key) == this->end() ? 0 : 1;
  }
  template <class... What>
  auto insert(What&&... what) {
    positions_.clear();
    return Base::insert(std::forward<What>(what)...);
  }
  template <class... What>
  auto erase(const What&... what) {
    positions_.clear();
    return Base::erase(what...);
  }

 private:
  static constexpr std::size_t kFew = 16;

  std::ptrdiff_t position(std::string_view key) const {
    if (this->size() <= kFew) {
      std::ptrdiff_t position = 0;
      while (std::cmp_less(position, this->size()) && (this->begin() + position)->first != key) {
        ++position;
      }
      return position;
    }
    if (positions_.empty()) {
      for (const auto& [name, value] : *this) positions_.emplace(name, positions_.size());
    }
    const auto found = positions_.find(std::string(key));
    return static_cast<std::ptrdiff_t>(found == positions_.end() ? this->size() : found->second);
  }

  mutable std::unordered_map<std::string, std::size_t> positions_;  // empty until looked up
};

using Json = nlohmann::basic_json<IndexedMap>;

/// Throws ValueError "source: not JSON: ..." for what is not, for an object of which a key stands
/// twice, and where it is nested more than kMaxJsonDepth levels deep. `text` must be UTF-8.
Json parse_json(std::string_view text, const std::string& source);

/// The object in a file. Throws as read_text_file and parse_json do; ValueError for other JSON.
Json read_json_object(const std::string& path);

/// As Python's json.dumps(indent=2) lays it out, with a line feed at the end.
std::string to_json_text(const Json& json);

/// A number that is written with the fewest digits that give the same float32.
Json json_number(float value);

/// The member of that name, or null where `json` is no object or has none. Never throws.
const Json& member(const Json& json, std::string_view key);

}  // namespace amct
