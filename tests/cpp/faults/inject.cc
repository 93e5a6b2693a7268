// A library to preload: makes a call of the system fail, or end the process, at a step of its own.
//
// AMCT_NAMED=1  no file can be made without a name, as on a file system that has none.
// AMCT_FAULT=CALL:NUMBER:WHAT  the NUMBERth CALL (open, write, fsync, linkat, close, rename) on a
// regular file that is written fails with the errno WHAT, or the process is killed where WHAT is
// "kill". A write that is to be killed writes half of its bytes before.
// AMCT_FAULT=list  nothing fails; the standard error gets a line for each of these calls, and
// behind "rename" the name of the file that it puts into its place.
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

struct Fault {
  std::string call;
  long number = 0;
  int code = 0;  // 0: kill
};

Fault read_fault() {
  const char* text = std::getenv("AMCT_FAULT");  // NOLINT(concurrency-mt-unsafe): nobody sets it
  if (text == nullptr) return {};
  const std::string all(text);
  if (all == "list") return {all};
  const std::size_t first = all.find(':');
  const std::size_t second = all.find(':', first + 1);
  if (second == std::string::npos) std::abort();
  const std::string what = all.substr(second + 1);
  return {all.substr(0, first), std::stol(all.substr(first + 1, second - first - 1)),
          what == "kill" ? 0 : std::stoi(what)};
}

/// Past what stands in for the system here.
void list(std::string_view call, std::string_view path) {
  const std::string line = std::string(call) + " " + std::string(path) + "\n";
  if (::syscall(SYS_write, STDERR_FILENO, line.data(), line.size()) < 0) std::abort();
}

/// Whether this call is the one; the process is killed here, after last(), where that is the fault.
template <typename Last = void (*)()>
bool fails(std::string_view call, Last last = [] {}, std::string_view path = {}) {
  static const Fault fault = read_fault();
  static std::atomic<long> calls{0};
  if (fault.call == "list") list(call, path);
  if (call != fault.call || ++calls != fault.number) return false;
  if (fault.code == 0) {
    last();
    static_cast<void>(::raise(SIGKILL));
  }
  errno = fault.code;
  return true;
}

// Of the file that is locked beside the record, which may fail without harm.
std::atomic<int> lock_file{-1};

bool is_written_file(int fd) {
  if (fd == lock_file) return false;
  struct stat info{};
  const int saved = errno;
  const bool is = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode) &&
                  (::fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
  errno = saved;
  return is;
}

template <typename Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

bool is_nameless(int flags) { return (flags & O_TMPFILE) == O_TMPFILE; }
bool makes_file(int flags) { return (flags & O_CREAT) != 0 || is_nameless(flags); }

int open_file(const char* symbol, const char* path, int flags, mode_t mode) {
  const bool is_lock = std::string_view(path).ends_with(".lock");
  if (is_nameless(flags) &&
      std::getenv("AMCT_NAMED") != nullptr) {  // NOLINT(concurrency-mt-unsafe)
    errno = EOPNOTSUPP;
    return -1;
  }
  if (makes_file(flags) && !is_lock && fails("open")) return -1;
  static auto* const real = next<int(const char*, int, ...)>(symbol);
  const int fd = real(path, flags, mode);
  if (is_lock) lock_file = fd;
  return fd;
}

}  // namespace

// The names of parameters are not those of the system, which are reserved.
// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name)
extern "C" {

int open(const char* path, int flags, ...) {
  std::va_list arguments;
  va_start(arguments, flags);
  const auto mode = makes_file(flags) ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  return open_file("open", path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  std::va_list arguments;
  va_start(arguments, flags);
  const auto mode = makes_file(flags) ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  return open_file("open64", path, flags, mode);
}

ssize_t write(int fd, const void* bytes, std::size_t size) {
  static auto* const real = next<ssize_t(int, const void*, std::size_t)>("write");
  if (is_written_file(fd) && fails("write", [&] { real(fd, bytes, size / 2); })) return -1;
  return real(fd, bytes, size);
}

int fsync(int fd) {
  if (is_written_file(fd) && fails("fsync")) return -1;
  static auto* const real = next<int(int)>("fsync");
  return real(fd);
}

int close(int fd) {
  static auto* const real = next<int(int)>("close");
  const bool fail = is_written_file(fd) && fails("close");
  const int code = errno;
  const int result = real(fd);
  if (!fail) return result;
  errno = code;
  return -1;
}

int linkat(int from_folder, const char* from, int to_folder, const char* to, int flags) {
  if (fails("linkat")) return -1;
  static auto* const real = next<int(int, const char*, int, const char*, int)>("linkat");
  return real(from_folder, from, to_folder, to, flags);
}

int rename(const char* from, const char* to) {
  if (fails("rename", [] {}, to)) return -1;
  static auto* const real = next<int(const char*, const char*)>("rename");
  return real(from, to);
}

}  // extern "C"
// NOLINTEND(readability-inconsistent-declaration-parameter-name)
