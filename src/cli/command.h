// What the subcommands share.
#pragma once

#include "amct/core/options.h"
#include "amct/core/text.h"

#include <functional>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json_fwd.hpp>

#include "cli/cli.h"

namespace amct::cli {

/// Where a command writes, and how.
struct Context {
  std::ostream& out;
  std::ostream& err;
  bool interactive = false;
  bool json = false;

  /// A line on `err` that the next one replaces; nothing where nobody watches.
  void progress(std::string_view text) const;
  /// Takes the line away.
  void end_progress() const;
  /// Writes JSON to `out`. Bytes of names that are not UTF-8, which JSON cannot hold, become
  /// U+FFFD.
  void write(const nlohmann::ordered_json& json) const;
};

/// What a subcommand does once its arguments are parsed.
using Action = std::function<Exit(const Context&)>;

/// Adds a subcommand to the program. `on_parsed` is given its action where it was called.
using OnParsed = std::function<void(Action)>;
void add_inspect(CLI::App& program, const OnParsed& on_parsed);
void add_solve(CLI::App& program, const OnParsed& on_parsed);
void add_merge(CLI::App& program, const OnParsed& on_parsed);
void add_diff(CLI::App& program, const OnParsed& on_parsed);
void add_export(CLI::App& program, const OnParsed& on_parsed);
void add_verify(CLI::App& program, const OnParsed& on_parsed);
void add_completion(CLI::App& program, const OnParsed& on_parsed);
void add_reference(CLI::App& program, const OnParsed& on_parsed);

/// Text in columns, as wide as their widest cell: not cut to a terminal, since names are there to
/// be copied. They are printable(). Numbers stand to the right.
std::string table(const std::vector<std::vector<std::string>>& rows);

/// A number as a setting of the configuration file: true, 4, 0.99, [0.7, 1.3] or a word.
OptionValue option_value(const std::string& text);

/// Takes one of `words`, in letters of either case, and makes it the word as it stands there; for
/// Option::transform.
CLI::Validator one_of(const std::vector<std::string>& words);
/// The words that an option takes by one_of; none where it takes others.
std::vector<std::string> words_taken_by(const CLI::Option& option);

}  // namespace amct::cli
