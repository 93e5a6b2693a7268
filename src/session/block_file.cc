#include "session/block_file.h"

#include "amct/core/error.h"
#include "amct/core/limits.h"

#include <limits>
#include <utility>

#include <zlib.h>

namespace amct {
namespace {

constexpr std::size_t kSizeBytes = 8;
constexpr std::size_t kCrcBytes = 4;

void append_number(std::string& to, std::uint64_t number, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) to += static_cast<char>((number >> (8 * i)) & 0xFF);
}

std::uint64_t number_at(std::string_view from, std::size_t at, std::size_t bytes) {
  std::uint64_t number = 0;
  for (std::size_t i = 0; i < bytes; ++i)
    number |= std::uint64_t{static_cast<std::uint8_t>(from[at + i])} << (8 * i);
  return number;
}

std::uint32_t crc_of(std::string_view content) {
  return static_cast<std::uint32_t>(
      ::crc32_z(0, reinterpret_cast<const Bytef*>(content.data()), content.size()));
}

}  // namespace

BlockWriter::BlockWriter(const std::string& path, const BlockFormat& format) : file_(path) {
  append(std::string(format.magic) + static_cast<char>(format.version));
}

void BlockWriter::append(std::string_view content) {
  file_.append(content);
  size_ += content.size();
}

void BlockWriter::add(std::string_view content) {
  std::string head;
  append_number(head, content.size(), kSizeBytes);
  append_number(head, crc_of(content), kCrcBytes);
  append(head);
  const Place place{size_, content.size()};
  append(content);
  blocks_.push_back(place);
}

void BlockWriter::commit() {
  add("");
  file_.commit();
}

std::string BlockWriter::read_back(std::size_t block) const {
  const Place& place = blocks_.at(block);
  return file_.read_back(place.begin, place.size);
}

BlockReader::BlockReader(const std::string& path, const BlockFormat& format)
    : file_(path), path_(path), format_(format) {
  const std::string name(format.name);
  const std::string start = file_.read(format.magic.size() + 1);
  if (start.size() <= format.magic.size() || !start.starts_with(format.magic))
    throw ValueError(path + ": this is not a " + name);
  const auto version = static_cast<std::uint8_t>(start.back());
  if (version != format.version) {
    throw ValueError(path + ": this " + name + " has version " + std::to_string(version) +
                     " of its format, and this library reads version " +
                     std::to_string(format.version) + "; install a newer one");
  }
}

void BlockReader::damaged(const std::string& what) const {
  throw ValueError(path_ + ": the " + std::string(format_.name) + " is damaged: " + what + "; " +
                   std::string(format_.remedy));
}

std::string BlockReader::next() {
  if (at_end_) return {};
  const std::string head = file_.read(kSizeBytes + kCrcBytes);
  if (head.size() < kSizeBytes + kCrcBytes)
    damaged("it ends before its last block, so it was not written to its end");
  const std::uint64_t size = number_at(head, 0, kSizeBytes);
  if (size > kMaxBlockSize || size > file_.remaining()) damaged("a block is longer than the file");
  std::string content = file_.read(static_cast<std::size_t>(size));
  if (content.size() != size || crc_of(content) != number_at(head, kSizeBytes, kCrcBytes))
    damaged("a checksum is wrong");
  if (content.empty()) {
    at_end_ = true;
    if (file_.remaining() > 0) damaged("it goes on after its last block");
  }
  return content;
}

}  // namespace amct
