#include "amct/core/file.h"

#include "amct/core/error.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
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
  Descriptor& operator=(Descriptor&& other) noexcept {
    close();
    fd_ = std::exchange(other.fd_, -1);
    return *this;
  }
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
  TemporaryFile() = default;
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  const std::string& path() const { return path_; }
  void remove_later(std::string path) { path_ = std::move(path); }
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

/// A name in `folder` for what is not in its place yet. It is unique in this process by a counter
/// and among processes by the pid; one that a killed process left must be passed over. It does not
/// contain the target's name, which may already be as long as a name can be.
std::string temporary_name(const fs::path& folder) {
  static std::atomic<unsigned> counter{0};
  return (folder / (".amct-" + std::to_string(::getpid()) + "-" +
                    std::to_string(counter.fetch_add(1)) + ".tmp"))
      .string();
}

/// Where the file of a descriptor can be found as long as that is open.
std::string link_to(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

/// Opens a new file without a name in `folder`, which is gone with the process however that ends
/// (open(2), O_TMPFILE). Not valid where the file system has none, or where it could not be named.
Descriptor create_nameless(const fs::path& folder, const std::string& path) {
  const std::string place = folder.empty() ? "." : folder.string();
  Descriptor fd(::open(place.c_str(), O_RDWR | O_TMPFILE | O_CLOEXEC, kFileMode));
  if (!fd.valid()) {
    if (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL) return fd;
    throw IoError(errno, "write", path);
  }
  if (::access(link_to(fd.get()).c_str(), F_OK) != 0) fd.close();
  return fd;
}

/// Opens a new file in `folder` for what will become `path`; `temporary` removes it.
Descriptor create_named(const fs::path& folder, const std::string& path, TemporaryFile* temporary) {
  for (;;) {
    std::string name = temporary_name(folder);
    Descriptor fd(::open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, kFileMode));
    if (fd.valid()) {
      temporary->remove_later(std::move(name));
      return fd;
    }
    if (errno != EEXIST) throw IoError(errno, "write", path);
  }
}

/// Gives the file of create_nameless() a name in `folder`, from which it can be renamed.
void name_file(int fd, const fs::path& folder, const std::string& path, TemporaryFile* temporary) {
  for (;;) {
    std::string name = temporary_name(folder);
    if (::linkat(AT_FDCWD, link_to(fd).c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) == 0) {
      temporary->remove_later(std::move(name));
      return;
    }
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

/// A file to read, and its size; 0 of a pipe or a device, which have none.
struct OpenFile {
  Descriptor fd;
  std::uint64_t size;
};

/// Pipes, which a text may come through, have no size, and wait for whoever writes them.
enum class Pipes : std::uint8_t { kWaitedFor, kRefused };

OpenFile open_to_read(const std::string& path, Pipes pipes) {
  check_name(path);
  Descriptor fd(
      ::open(path.c_str(), O_RDONLY | O_CLOEXEC | (pipes == Pipes::kRefused ? O_NONBLOCK : 0)));
  if (!fd.valid()) throw IoError(errno, "read", path);
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) throw IoError(errno, "read", path);
  if (S_ISDIR(info.st_mode)) throw ValueError("'" + path + "' is a folder, not a file");
  if (pipes == Pipes::kRefused && !S_ISREG(info.st_mode))
    throw ValueError("'" + path + "' is a pipe or a device, not a file");
  return {std::move(fd), S_ISREG(info.st_mode) ? static_cast<std::uint64_t>(info.st_size) : 0};
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

std::string read_text_file(const std::string& path, std::size_t limit) {
  const OpenFile file = open_to_read(path, Pipes::kWaitedFor);
  std::string content;
  const auto check_size = [&](std::uint64_t size) {
    if (size > limit)
      throw ValueError("'" + path + "' is larger than " + std::to_string(limit) + " bytes");
  };
  check_size(file.size);
  std::string buffer(std::size_t{1} << 16, '\0');
  while (const std::size_t got = read_some(file.fd.get(), buffer.data(), buffer.size(), path)) {
    check_size(content.size() + got);  // it may have no size, or have grown
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
  // /dev/null would be replaced by whoever may, and so would the link /dev/stdout.
  const fs::file_status status = fs::status(path, ignored);
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    throw ValueError(
        "'" + path +
        "' is a device, pipe or socket, which would be replaced; the name of a file is "
        "needed");
  }
}

void check_different_files(std::span<const std::string> paths) {
  std::map<fs::path, const std::string*> seen;
  for (const std::string& path : paths) {
    std::error_code failed;  // whoever opens the file will say so
    fs::path place = fs::absolute(path, failed);
    if (fs::path canonical = fs::weakly_canonical(place, failed); !failed)
      place = std::move(canonical);
    const auto [at, is_new] = seen.emplace(place.lexically_normal(), &path);
    if (is_new) continue;
    throw ValueError(*at->second == path
                         ? "'" + path + "' is given twice, where two files are needed"
                         : "'" + *at->second + "' and '" + path +
                               "' are one file, where two are needed");
  }
}

void create_folders_of(const std::string& path) { create_folders(fs::path(path).parent_path()); }

struct AtomicFile::State {
  std::string path;
  fs::path folder;
  TemporaryFile temporary;  // not there while the file has no name
  Descriptor fd;

  explicit State(std::string target)
      : path(std::move(target)),
        folder(fs::path(path).parent_path()),
        fd(create_nameless(folder, path)) {
    if (!fd.valid()) fd = create_named(folder, path, &temporary);
  }
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
  if (state.temporary.path().empty()) {
    // Nothing else is done while it has a name and is not in its place, for then it can stay
    // behind. It is closed with this object: its content is on the disk.
    name_file(state.fd.get(), state.folder, state.path, &state.temporary);
  } else if (const int code = state.fd.close(); code != 0) {
    throw IoError(code, "write", state.path);
  }
  if (::rename(state.temporary.path().c_str(), state.path.c_str()) != 0)
    throw IoError(errno, "replace", state.path);
  state.temporary.keep();
  state.fd.close();
  sync_folder(state.folder.empty() ? "." : state.folder);
}

const std::string& AtomicFile::path() const { return state_->path; }

struct FileReader::State {
  std::string path;
  OpenFile file;
  std::uint64_t read = 0;
};

FileReader::FileReader(std::string path) {
  OpenFile file = open_to_read(path, Pipes::kRefused);
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
