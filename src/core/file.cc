#include "amct/core/file.h"

#include "amct/core/error.h"

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace amct {
namespace {

namespace fs = std::filesystem;

constexpr mode_t kFileMode = 0640;
constexpr mode_t kFolderMode = 0750;
constexpr std::size_t kMaxNameLength = 255;

/// Owns a file descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() { close(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  /// Returns 0 or the errno of close(), which can report a write that failed late (quota, NFS).
  int close() {
    if (fd_ < 0) return 0;
    return ::close(std::exchange(fd_, -1)) == 0 ? 0 : errno;
  }

 private:
  int fd_;
};

/// Removes a file at the end of the scope unless told not to.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string path) : path_(std::move(path)) {}
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  const std::string& path() const { return path_; }
  void keep() { path_.clear(); }

 private:
  std::string path_;
};

void create_folders(const fs::path& folder) {
  if (folder.empty()) return;
  std::error_code ignored;
  if (fs::is_directory(folder, ignored)) return;
  create_folders(folder.parent_path());
  if (::mkdir(folder.c_str(), kFolderMode) == 0) {
    ::chmod(folder.c_str(), kFolderMode);  // whatever the umask took away
  } else if (errno != EEXIST) {
    throw IoError(errno, "create the folder", folder.string());
  } else if (!fs::is_directory(folder, ignored)) {
    throw IoError(ENOTDIR, "create the folder", folder.string());
  }
}

void write_all(int fd, std::string_view content, const std::string& path) {
  while (!content.empty()) {
    const ssize_t written = ::write(fd, content.data(), content.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      throw IoError(errno, "write", path);
    }
    content.remove_prefix(static_cast<std::size_t>(written));
  }
}

/// Opens a new file in `folder` for what will become `path`; `*name` gets its path. The name is
/// unique in this process by a counter and among processes by the pid; one that a killed process
/// left is passed over. It does not contain the target's name, which may already be as long as a
/// name can be.
Descriptor create_temporary(const fs::path& folder, const std::string& path, std::string* name) {
  static std::atomic<unsigned> counter{0};
  for (;;) {
    *name = (folder / (".amct-" + std::to_string(::getpid()) + "-" +
                       std::to_string(counter.fetch_add(1)) + ".tmp"))
                .string();
    Descriptor fd(::open(name->c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kFileMode));
    if (fd.valid()) return fd;
    if (errno != EEXIST) throw IoError(errno, "write", path);
  }
}

/// Makes the rename itself survive a power cut. Some file systems cannot sync a folder; then there
/// is nothing more to do, and the file is whole in any case.
void sync_folder(const fs::path& folder) {
  const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.valid()) ::fsync(fd.get());
}

/// Length of the UTF-8 sequence at the front of `text`, 0 where it is malformed.
std::size_t sequence_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  std::size_t length = 0;
  if (lead >= 0xC2 && lead <= 0xDF) length = 2;
  if (lead >= 0xE0 && lead <= 0xEF) length = 3;
  if (lead >= 0xF0 && lead <= 0xF4) length = 4;
  if (length == 0 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const std::uint8_t second = byte(1);
  const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
  const bool surrogate = lead == 0xED && second > 0x9F;
  const bool too_large = lead == 0xF4 && second > 0x8F;
  return overlong || surrogate || too_large ? 0 : length;
}

}  // namespace

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = sequence_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string read_text_file(const std::string& path, std::size_t limit) {
  // The system would take the name up to the NUL, and read another file.
  if (path.find('\0') != std::string::npos) {
    throw ValueError("the name of a file to read holds a NUL character");
  }
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) throw IoError(errno, "read", path);
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) throw IoError(errno, "read", path);
  if (S_ISDIR(info.st_mode)) throw ValueError("'" + path + "' is a folder, not a file");
  std::string content;
  std::string buffer(std::size_t{1} << 16, '\0');
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
    if (got < 0) {
      if (errno == EINTR) continue;
      throw IoError(errno, "read", path);
    }
    if (got == 0) break;
    if (content.size() + static_cast<std::size_t>(got) > limit) {
      throw ValueError("'" + path + "' is larger than " + std::to_string(limit) + " bytes");
    }
    content.append(buffer, 0, static_cast<std::size_t>(got));
  }
  if (!is_utf8(content)) throw ValueError("'" + path + "' is not UTF-8 text");
  return content;
}

void check_output_path(const std::string& path) {
  if (path.empty()) throw ValueError("the name of an output file is empty");
  if (path.find('\0') != std::string::npos) {
    throw ValueError("the name of an output file holds a NUL character");
  }
  for (const fs::path& part : fs::path(path)) {
    if (part.string().size() > kMaxNameLength) {
      throw ValueError("the name '" + part.string().substr(0, 32) + "...' is longer than " +
                       std::to_string(kMaxNameLength) + " bytes");
    }
  }
  std::error_code ignored;
  if (path.back() == '/' || fs::is_directory(path, ignored)) {
    throw ValueError("'" + path + "' is a folder; the name of a file is needed");
  }
}

void write_file_atomically(const std::string& path, std::string_view content) {
  check_output_path(path);
  const fs::path folder = fs::path(path).parent_path();
  create_folders(folder);

  std::string name;
  Descriptor fd = create_temporary(folder, path, &name);
  TemporaryFile temporary(name);
  if (::fchmod(fd.get(), kFileMode) != 0) throw IoError(errno, "set the mode of", path);
  write_all(fd.get(), content, path);
  if (::fsync(fd.get()) != 0) throw IoError(errno, "write", path);
  if (const int code = fd.close(); code != 0) throw IoError(code, "write", path);
  if (::rename(temporary.path().c_str(), path.c_str()) != 0) throw IoError(errno, "replace", path);
  temporary.keep();
  sync_folder(folder.empty() ? "." : folder);
}

}  // namespace amct
