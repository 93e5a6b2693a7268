// Reading and replacing whole files. Every failure is an IoError or a ValueError that names the
// path.
#pragma once

#include "amct/core/limits.h"
#include "amct/core/text.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#pragma GCC visibility push(default)
namespace amct {

/// The whole content of a file. Throws IoError where it cannot be read; ValueError where `path` is
/// a folder or cannot name a file (empty, a component longer than 255 bytes, a NUL inside), the
/// file is larger than `limit` bytes, or its bytes are not UTF-8.
std::string read_text_file(const std::string& path, std::size_t limit = kMaxTextFileSize);

/// Throws ValueError where `path` cannot name an output file: empty, an existing folder (or ending
/// in '/'), a device, pipe or socket (or a link to one), a component longer than 255 bytes, or a
/// NUL inside.
void check_output_path(const std::string& path);

/// Throws ValueError, which names them, where two of the paths lead to one file, links followed.
/// For what is read and what is written: what is written would take its place.
void check_different_files(std::span<const std::string> paths);

/// Makes the folders that `path` lies in, with mode 750. Throws IoError.
void create_folders_of(const std::string& path);

/// Replaces the file by `content`: writes a temporary beside it, syncs, renames. Readers see the
/// old or the new file, whole. A link in its place is replaced, not followed. Missing folders are
/// created with mode 750; the file gets mode 640. Throws IoError, and leaves no temporary behind;
/// ValueError as check_output_path does. The temporary has no name until it is whole, where the
/// file system can do that, so that a process that is killed leaves none either.
void write_file_atomically(const std::string& path, std::string_view content);

/// A file that is written in pieces and is there once it is whole: see write_file_atomically, which
/// writes it in one.
class AtomicFile {
 public:
  /// Creates the temporary beside `path`, and missing folders. Throws as write_file_atomically
  /// does.
  explicit AtomicFile(std::string path);
  AtomicFile(AtomicFile&&) noexcept;
  AtomicFile& operator=(AtomicFile&&) noexcept;
  ~AtomicFile();  ///< removes the temporary unless it was committed

  /// Throws IoError.
  void append(std::string_view content);
  /// `size` bytes of what was appended. Throws IoError.
  std::string read_back(std::uint64_t begin, std::size_t size) const;
  /// Syncs, and puts the file into its place. Throws IoError; what was there is then as it was.
  /// Nothing can be appended afterwards.
  void commit();

  const std::string& path() const;

 private:
  struct [[gnu::visibility("hidden")]] State;
  std::unique_ptr<State> state_;
};

/// Reads a binary file in pieces.
class FileReader {
 public:
  /// Throws as read_text_file does, but for what concerns the content; ValueError for a pipe or a
  /// device, which is not waited for.
  explicit FileReader(std::string path);
  FileReader(FileReader&&) noexcept;
  FileReader& operator=(FileReader&&) noexcept;
  ~FileReader();

  std::uint64_t remaining() const;  ///< bytes from here to the end, as of when it was opened
  /// The next `size` bytes; fewer where the file ends before. Throws IoError.
  std::string read(std::size_t size);

 private:
  struct [[gnu::visibility("hidden")]] State;
  std::unique_ptr<State> state_;
};

}  // namespace amct
#pragma GCC visibility pop
