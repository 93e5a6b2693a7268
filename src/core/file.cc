#include "amct/core/file.h"

#include "amct/core/error.h"

#include <algorithm>
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
    Descriptor fd(::open(name->c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, kFileMode));
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

/// Throws ValueError where no file can have that name.
void check_name(const std::string& path) {
  if (path.empty()) throw ValueError("the name of a file is empty");
  // The system would take the name up to the NUL, and open another file.
  if (path.find('\0') != std::string::npos) {
    throw ValueError("the name of a file holds a NUL character");
  }
  for (const fs::path& part : fs::path(path)) {
    if (part.string().size() > kMaxNameLength) {
      throw ValueError("the name '" + part.string().substr(0, 32) + "...' is longer than " +
                       std::to_string(kMaxNameLength) + " bytes");
    }
  }
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

/// A file to read, and its size.
struct OpenFile {
  Descriptor fd;
  std::uint64_t size;
};

OpenFile open_to_read(const std::string& path) {
  check_name(path);
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) throw IoError(errno, "read", path);
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) throw IoError(errno, "read", path);
  if (S_ISDIR(info.st_mode)) throw ValueError("'" + path + "' is a folder, not a file");
  return {std::move(fd), static_cast<std::uint64_t>(info.st_size)};
}

/// Reads up to `size` bytes; 0 at the end of the file.
std::size_t read_some(int fd, char* to, std::size_t size, const std::string& path) {
  for (;;) {
    const ssize_t got = ::read(fd, to, size);
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno != EINTR) throw IoError(errno, "read", path);
  }
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
  const OpenFile file = open_to_read(path);
  std::string content;
  std::string buffer(std::size_t{1} << 16, '\0');
  while (const std::size_t got = read_some(file.fd.get(), buffer.data(), buffer.size(), path)) {
    if (content.size() + got > limit) {
      throw ValueError("'" + path + "' is larger than " + std::to_string(limit) + " bytes");
    }
    content.append(buffer, 0, got);
  }
  if (!is_utf8(content)) throw ValueError("'" + path + "' is not UTF-8 text");
  return content;
}

void check_output_path(const std::string& path) {
  check_name(path);
  std::error_code ignored;
  if (path.back() == '/' || fs::is_directory(path, ignored)) {
    throw ValueError("'" + path + "' is a folder; the name of a file is needed");
  }
}

void create_folders_of(const std::string& path) { create_folders(fs::path(path).parent_path()); }

struct AtomicFile::State {
  std::string path;
  fs::path folder;
  std::string name;  // of the temporary
  Descriptor fd;
  TemporaryFile temporary;

  explicit State(std::string target)
      : path(std::move(target)),
        folder(fs::path(path).parent_path()),
        fd(create_temporary(folder, path, &name)),
        temporary(name) {}
};

AtomicFile::AtomicFile(std::string path) {
  check_output_path(path);
  create_folders_of(path);
  state_ = std::make_unique<State>(std::move(path));
  if (::fchmod(state_->fd.get(), kFileMode) != 0)
    throw IoError(errno, "set the mode of", state_->path);
}
AtomicFile::AtomicFile(AtomicFile&&) noexcept = default;
AtomicFile& AtomicFile::operator=(AtomicFile&&) noexcept = default;
AtomicFile::~AtomicFile() = default;

void AtomicFile::append(std::string_view content) {
  write_all(state_->fd.get(), content, state_->path);
}

std::string AtomicFile::read_back(std::uint64_t begin, std::size_t size) const {
  std::string content(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = ::pread(state_->fd.get(), content.data() + done, size - done,
                                static_cast<off_t>(begin + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw IoError(got < 0 ? errno : EIO, "read back", state_->path);
    done += static_cast<std::size_t>(got);
  }
  return content;
}

void AtomicFile::commit() {
  State& state = *state_;
  if (::fsync(state.fd.get()) != 0) throw IoError(errno, "write", state.path);
  if (const int code = state.fd.close(); code != 0) throw IoError(code, "write", state.path);
  if (::rename(state.temporary.path().c_str(), state.path.c_str()) != 0)
    throw IoError(errno, "replace", state.path);
  state.temporary.keep();
  sync_folder(state.folder.empty() ? "." : state.folder);
}

const std::string& AtomicFile::path() const { return state_->path; }

struct FileReader::State {
  std::string path;
  OpenFile file;
  std::uint64_t read = 0;
};

FileReader::FileReader(std::string path) {
  OpenFile file = open_to_read(path);
  state_ = std::make_unique<State>(State{std::move(path), std::move(file)});
}
FileReader::FileReader(FileReader&&) noexcept = default;
FileReader& FileReader::operator=(FileReader&&) noexcept = default;
FileReader::~FileReader() = default;

std::uint64_t FileReader::remaining() const {
  return state_->file.size - std::min(state_->read, state_->file.size);
}

std::string FileReader::read(std::size_t size) {
  std::string content(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    const std::size_t got =
        read_some(state_->file.fd.get(), content.data() + done, size - done, state_->path);
    if (got == 0) break;
    done += got;
  }
  state_->read += done;
  content.resize(done);
  return content;
}

void write_file_atomically(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.append(content);
  file.commit();
}

}  // namespace amct
