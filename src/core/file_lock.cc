#include "amct/core/file_lock.h"

#include "amct/core/error.h"
#include "amct/core/file.h"

#include <array>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace amct {
namespace {

namespace fs = std::filesystem;

constexpr mode_t kLockMode = 0640;
constexpr std::size_t kLongestName = 240;
constexpr std::chrono::milliseconds kStep(20);

/// The file beside `path` that is locked in its place.
fs::path lock_path(const fs::path& path) {
  std::string name = path.filename().string();
  if (name.size() > kLongestName) name = std::to_string(std::hash<std::string>()(name));
  std::error_code ignored;
  fs::path folder = path.parent_path();
  if (folder.empty()) folder = ".";
  const fs::path canonical = fs::weakly_canonical(folder, ignored);
  return (ignored ? folder : canonical) / ("." + name + ".lock");
}

/// Who holds a lock, as it wrote it.
std::string holder_of(int fd) {
  std::array<char, 256> text{};
  const ssize_t size = ::pread(fd, text.data(), text.size(), 0);
  std::string holder(text.data(), size > 0 ? static_cast<std::size_t>(size) : 0);
  for (char& c : holder) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       c == ' ' || c == '-' || c == '.';
    if (!plain) c = '?';
  }
  return holder.empty() ? "another process" : holder;
}

void write_holder(int fd) {
  std::array<char, 128> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '\0';
  const std::string holder = "process " + std::to_string(::getpid()) + " on " + host.data();
  if (::ftruncate(fd, 0) != 0) return;  // it is for messages alone
  if (::pwrite(fd, holder.data(), holder.size(), 0) < 0) return;
}

/// Whether the file of `fd` is still the one at `path`: whoever held it may have removed it.
bool is_at(int fd, const std::string& path) {
  struct stat mine{};
  struct stat there{};
  return ::fstat(fd, &mine) == 0 && ::stat(path.c_str(), &there) == 0 &&
         mine.st_ino == there.st_ino && mine.st_dev == there.st_dev;
}

enum class Try : std::uint8_t { kLocked, kHeldByAnother, kImpossible };

/// Opens the file to be locked; -1 where the folder takes no files, as then nobody writes there.
/// Throws where one is there and cannot be opened, since somebody may hold it.
int open_lock(const std::string& path) {
  for (;;) {
    int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, kLockMode);
    const int code = errno;
    if (fd >= 0) return fd;
    if (code == EINTR) continue;
    if (code == ELOOP) {
      throw StateError("'" + path +
                       "' is a link, which is not followed; remove it: it stands where a lock is "
                       "kept while a run writes");
    }
    // Of another user, whose processes a lock through this excludes all the same.
    if (code == EACCES) fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0) return fd;
    struct stat there{};
    const bool is_there = ::lstat(path.c_str(), &there) == 0;
    if (is_there || code == EMFILE || code == ENFILE || code == ENOMEM)
      throw IoError(code, "lock", path);
    return -1;
  }
}

/// Tries to lock `path`; `*fd` gets the open file, `*holder` who holds it.
Try try_lock(const std::string& path, int* fd, std::string* holder) {
  for (;;) {
    *fd = open_lock(path);
    if (*fd < 0) return Try::kImpossible;
    if (::flock(*fd, LOCK_EX | LOCK_NB) != 0) {
      const bool is_held = errno == EWOULDBLOCK;
      if (is_held) *holder = holder_of(*fd);
      ::close(*fd);
      return is_held ? Try::kHeldByAnother : Try::kImpossible;
    }
    if (is_at(*fd, path)) return Try::kLocked;
    ::close(*fd);
  }
}

}  // namespace

struct FileLock::Held {
  std::string path;
  int fd = -1;
  pid_t owner = ::getpid();

  Held() = default;
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    if (fd < 0) return;
    const std::lock_guard guard(mutex());  // else this process would find it held by another one
    if (owner == ::getpid()) {             // not in a child process, which has it by a fork
      ::unlink(path.c_str());
      ::flock(fd, LOCK_UN);  // also for a child process that has the file open
    }
    ::close(fd);
  }

  // Neither ever ends, since a lock may be held until the process does.
  /// The locks of this process, by the file that is locked.
  static std::map<std::string, std::weak_ptr<Held>>& all() {
    static auto& held = *new std::map<std::string, std::weak_ptr<Held>>;
    return held;
  }
  static std::mutex& mutex() {
    static auto& guard = *new std::mutex;
    return guard;
  }
};

FileLock::FileLock(const std::string& path, std::chrono::milliseconds patience) {
  check_output_path(path);
  try {
    create_folders_of(path);
  } catch (const IoError&) {
    return;  // whoever writes the file will say so
  }
  const std::string locked = lock_path(path).string();
  const auto deadline = std::chrono::steady_clock::now() + patience;
  for (;;) {
    // Given up after the guard, which the end of the last share takes.
    std::shared_ptr<Held> shared;
    {
      const std::lock_guard guard(Held::mutex());
      std::weak_ptr<Held>& known = Held::all()[locked];
      shared = known.lock();
      if (shared != nullptr && shared->owner == ::getpid()) {
        held_ = std::move(shared);
        return;
      }
      auto held = std::make_shared<Held>();
      held->path = locked;
      std::string holder;
      int fd = -1;
      const Try outcome = try_lock(locked, &fd, &holder);
      if (outcome == Try::kImpossible) return;
      if (outcome == Try::kLocked) {
        held->fd = fd;
        write_holder(fd);
        held_ = std::move(held);
        known = held_;
        return;
      }
      if (std::chrono::steady_clock::now() >= deadline) {
        throw StateError("'" + path + "' is being written by another process (" + holder +
                         "); wait for its end, or name another file");
      }
    }
    std::this_thread::sleep_for(kStep);
  }
}

}  // namespace amct
