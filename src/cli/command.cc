#include "cli/command.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <ostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace amct::cli {
namespace {

/// How many columns of a terminal UTF-8 text takes, but for wide characters.
std::size_t width(std::string_view text) {
  return static_cast<std::size_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

bool is_number(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789.,-+e% ") == std::string_view::npos;
}

}  // namespace

void Context::progress(std::string_view text) const {
  if (interactive) err << "\r\x1b[K" << printable(text) << std::flush;
}

void Context::end_progress() const {
  if (interactive) err << "\r\x1b[K" << std::flush;
}

void Context::write(const nlohmann::ordered_json& json) const {
  out << json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n';
}

std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  std::vector<bool> right;
  std::vector<std::vector<std::string>> cells;
  for (const std::vector<std::string>& row : rows) {
    std::vector<std::string>& line = cells.emplace_back();
    widths.resize(std::max(widths.size(), row.size()));
    right.resize(widths.size(), true);
    for (std::size_t i = 0; i < row.size(); ++i) {
      line.push_back(printable(row[i]));
      widths[i] = std::max(widths[i], width(line[i]));
      if (cells.size() > 1) right[i] = right[i] && (is_number(line[i]) || line[i].empty());
    }
  }
  std::string text;
  for (const std::vector<std::string>& line : cells) {
    std::string row;
    for (std::size_t i = 0; i < line.size(); ++i) {
      const std::string padding(widths[i] - width(line[i]), ' ');
      row += (i > 0 ? "  " : "") + (right[i] ? padding + line[i] : line[i] + padding);
    }
    row.erase(row.find_last_not_of(' ') + 1);
    text += row + '\n';
  }
  return text;
}

OptionValue option_value(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_integer()) return json.get<std::int64_t>();
  if (json.is_number_float()) return json.get<double>();
  const auto is_number_json = [](const auto& element) { return element.is_number(); };
  if (json.is_array() && std::ranges::all_of(json, is_number_json))
    return json.get<std::vector<double>>();
  return text;
}

CLI::Validator one_of(const std::vector<std::string>& words) {
  const auto take = [words](std::string& given) -> std::string {
    std::vector<std::string> lower;
    for (const std::string& word : words) lower.push_back(CLI::detail::to_lower(word));
    const auto place_of = [&](const std::string& word) {
      return static_cast<std::size_t>(std::ranges::find(lower, word) - lower.begin());
    };
    const std::string wanted = CLI::detail::to_lower(given);
    if (const std::size_t at = place_of(wanted); at < words.size()) {
      given = words[at];
      return {};
    }
    std::string problem = fmt::format("must be one of {}, not '{}'", fmt::join(words, ", "), given);
    if (const std::size_t at = place_of(closest_match(wanted, lower)); at < words.size())
      problem += fmt::format("; did you mean '{}'?", words[at]);
    return problem;
  };
  // Help shows the description, and words_taken_by finds the words in it.
  return {take, fmt::format("{{{}}}", fmt::join(words, ","))};
}

std::vector<std::string> words_taken_by(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const std::size_t begin = type.find('{');
  const std::size_t end = type.find('}', begin);
  if (begin == std::string::npos || end == std::string::npos) return {};
  return CLI::detail::split(type.substr(begin + 1, end - begin - 1), ',');
}

}  // namespace amct::cli
