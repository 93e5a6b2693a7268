// Counts files and snapshots. The first byte says which, and whether the rest is the file itself,
// or blocks (each after its size in two bytes) that get their checksums here: else hardly anything
// would come behind these.
#include "amct/search/search.h"
#include "amct/session/counts_file.h"
#include "amct/session/session.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "files.h"
#include "session/block_file.h"

namespace {

using namespace amct;

void write_blocks(const std::string& path, const BlockFormat& format, std::string_view from) {
  BlockWriter writer(path, format);
  while (from.size() >= 2) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(from[i]); };
    const std::size_t size =
        std::min<std::size_t>(byte(0) + std::size_t{256} * byte(1), from.size() - 2);
    if (size > 0) writer.add(from.substr(2, size));
    from.remove_prefix(2 + size);
  }
  writer.commit();
}

void read_counts(const std::string& path) {
  CountsReader reader(path);
  while (const std::optional<LayerCounts> layer = reader.next()) {
    layer->observer.serialize();
    Observer sum = Observer::deserialize(layer->observer.serialize());
    sum.merge(layer->observer);
    for (std::size_t group = 0; group < std::min<std::size_t>(layer->observer.groups(), 4);
         ++group) {
      if (layer->observer.is_range_only()) {
        layer->observer.range(group);
      } else {
        layer->observer.value_counts(group);
      }
    }
  }
  solve_counts(path);
}

void restore(const std::string& path) {
  CalibrationConfig config =
      default_config(std::vector<std::string>{"a", "b"}, algorithm_catalog());
  config.batch_num = 9;
  Session session(config, fuzz::folder() + "/record.txt", {.memory_budget = 1 << 20});
  session.restore(path);
  session.finish();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const bool is_snapshot = (data[0] & 1) != 0;
  const std::string_view rest = fuzz::text(data + 1, size - 1);
  const std::string path = fuzz::folder() + "/blocks";
  if ((data[0] & 2) != 0) {
    fuzz::file("blocks", rest);
  } else {
    write_blocks(
        path,
        {.magic = is_snapshot ? "AMCTsnp" : "AMCTcnt", .version = 1, .name = "", .remedy = ""},
        rest);
  }
  fuzz::expect_no_crash([&] { is_snapshot ? restore(path) : read_counts(path); });
  return 0;
}
