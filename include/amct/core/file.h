// Reading and replacing whole files. Every failure is an IoError or a ValueError that names the
// path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#pragma GCC visibility push(default)
namespace amct {

/// Size limit of the text files that are read: a larger one is refused before it is loaded.
inline constexpr std::size_t kMaxTextFileSize = std::size_t{1} << 30;

/// The whole content of a file. Throws IoError where it cannot be read; ValueError where `path` is
/// a folder or cannot name a file (empty, a component longer than 255 bytes, a NUL inside), the
/// file is larger than `limit` bytes, or its bytes are not UTF-8.
std::string read_text_file(const std::string& path, std::size_t limit = kMaxTextFileSize);

/// Throws ValueError where `path` cannot name an output file: empty, an existing folder (or ending
/// in
/// '/'), a component longer than 255 bytes, or a NUL inside.
void check_output_path(const std::string& path);

/// Makes the folders that `path` lies in, with mode 750. Throws IoError.
void create_folders_of(const std::string& path);

/// Replaces the file by `content`: writes a temporary beside it, syncs, renames. Readers see the
/// old or the new file, whole. Missing folders are created with mode 750; the file gets mode 640.
/// Throws IoError, and leaves no temporary behind; ValueError as check_output_path does.
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
  /// Throws as read_text_file does, but for what concerns the content.
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

/// Whether `text` is well-formed UTF-8 (RFC 3629: no surrogates, no overlong forms).
bool is_utf8(std::string_view text);

}  // namespace amct
#pragma GCC visibility pop
