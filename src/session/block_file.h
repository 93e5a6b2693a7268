// Files of blocks, each with its size and checksum: what counts files and snapshots are made of.
#pragma once

#include "amct/core/file.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace amct {

/// A kind of file: what it begins with, and what it is called in errors.
struct BlockFormat {
  std::string_view magic;  ///< 7 bytes
  std::uint8_t version;
  std::string_view name;    ///< "counts file"
  std::string_view remedy;  ///< of a damaged one: "calibrate again"
};

/// Writes a file block by block; it is there, whole, once it is committed.
class BlockWriter {
 public:
  /// Throws as AtomicFile does.
  BlockWriter(const std::string& path, const BlockFormat& format);

  /// Adds a block, which must not be empty. Throws IoError.
  void add(std::string_view content);
  /// Ends the file. Throws IoError; the file that was there is then as it was.
  void commit();

  const std::string& path() const { return file_.path(); }
  std::size_t blocks() const { return blocks_.size(); }
  /// The content of a block that was added. Throws IoError.
  std::string read_back(std::size_t block) const;

 private:
  struct Place {
    std::uint64_t begin;
    std::size_t size;
  };

  void append(std::string_view content);

  AtomicFile file_;
  std::uint64_t size_ = 0;
  std::vector<Place> blocks_;
};

/// Reads such a file block by block, each of which is checked against its checksum.
class BlockReader {
 public:
  /// Throws IoError; ValueError where the file is none of this format, or of another version.
  BlockReader(const std::string& path, const BlockFormat& format);

  const std::string& path() const { return path_; }
  /// The content of the next block; empty at the end of the file, where nothing may follow. Throws
  /// IoError, and ValueError where the file was damaged or is not whole.
  std::string next();
  /// Throws ValueError: the file was damaged, and how.
  [[noreturn]] void damaged(const std::string& what) const;

 private:
  FileReader file_;
  std::string path_;
  BlockFormat format_;
  bool at_end_ = false;
};

}  // namespace amct
