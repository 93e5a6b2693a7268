// Files and folders for tests.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>
#include <sys/stat.h>

namespace amct::support {

/// A folder in memory, where there is one, for tests that sync thousands of files: no disk needs to
/// hold them, and what waits for a disk takes as long as that is busy with others.
std::string folder_in_memory();

/// A new empty folder that is removed with all it holds at the end of the scope.
class TempFolder {
 public:
  /// Within `parent`, or where temporary files are.
  explicit TempFolder(const std::string& parent = testing::TempDir());
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder();

  const std::string& path() const { return path_; }
  /// The path of `name` inside the folder.
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
  /// Names of all that the folder holds, sorted; what a failed write left behind would show here.
  std::vector<std::string> names() const;

 private:
  std::string path_;
};

/// A test with a folder of its own.
class FolderTest : public testing::Test {
 protected:
  TempFolder folder;
};

std::string read_file(const std::string& path);
void write_file(const std::string& path, std::string_view content);
/// Permission bits.
mode_t mode_of(const std::string& path);

/// Runs `action` with the process's umask set to `mask`.
void with_umask(mode_t mask, const std::function<void()>& action);

/// Runs `action` in a child process in which a file may not grow beyond `bytes` (a full disk, as
/// far as write() can tell). Returns what `action` returns (0 to 100), or -1 where the child died.
int with_file_size_limit(std::size_t bytes, const std::function<int()>& action);

}  // namespace amct::support
