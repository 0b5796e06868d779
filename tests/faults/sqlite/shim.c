/* A shim between the store and the kernel. It counts, records and fails writes below one folder.
 * Environment variables control it:
 *   SHIM_FOLDER  the folder (without a slash at the end)
 *   SHIM_LOG     the file that records every write, truncation, sync and unlink, in order
 *   SHIM_AT      the number of the failing call, counted from 1 (0: none)
 *   SHIM_ERRNO   the error of the failing call
 *   SHIM_ON      1: every call from that one on fails; otherwise only that call
 *   SHIM_ARM     calls count only once this file exists
 *   SHIM_LIFT    no call fails once this file exists
 *   SHIM_DO      an action at that call instead of a failure: "kill" the process, or "hold" it until it
 *                reads a line, and then fail only if SHIM_ERRNO is set
 * A failing write puts half of its bytes on disk, which is the harder case. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long calls;
static int log_fd = -1;

static int exists(const char *name) {
  const char *path = getenv(name);
  return path && syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
}

static int below(const char *path) {
  const char *folder = getenv("SHIM_FOLDER");
  size_t len = folder ? strlen(folder) : 0;
  return len && strncmp(path, folder, len) == 0 && (path[len] == '/' || path[len] == 0);
}

/* The path of a descriptor, if it is below the folder. */
static int where(int fd, char *path, size_t size) {
  char link[64];
  int kept = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long len = syscall(SYS_readlinkat, AT_FDCWD, link, path, size - 1);
  errno = kept;
  if (len <= 0) return 0;
  path[len] = 0;
  return below(path);
}

static int fails(const char *path) {
  const char *at = getenv("SHIM_AT"), *on = getenv("SHIM_ON"), *error = getenv("SHIM_ERRNO");
  const char *end = strrchr(path, '.');
  if (end && strcmp(end, ".marker") == 0) return 0;
  if (getenv("SHIM_ARM") && !exists("SHIM_ARM")) return 0;
  long first = at ? atol(at) : 0;
  calls++;
  if (!first || calls < first || (calls > first && !(on && *on == '1'))) return 0;
  if (exists("SHIM_LIFT")) return 0;
  const char *act = getenv("SHIM_DO");
  if (act && strcmp(act, "kill") == 0) kill(getpid(), SIGKILL);
  if (act && strcmp(act, "hold") == 0) {
    char line[64];
    syscall(SYS_write, 1, "@ held\n", 7);
    syscall(SYS_read, 0, line, sizeof line);
    if (!error) return 0;
  }
  errno = error ? atoi(error) : EIO;
  return 1;
}

/* Record: kind, length of the path, offset, length of the bytes, path, bytes. */
static void record(char kind, const char *path, uint64_t offset, const void *bytes, uint64_t len) {
  const char *log = getenv("SHIM_LOG");
  if (!log) return;
  int kept = errno;
  if (log_fd < 0) {
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) _exit(98);
  }
  uint64_t head[4] = {(uint64_t)kind, strlen(path), offset, len};
  struct iovec parts[3] = {{head, sizeof head}, {(void *)path, strlen(path)}, {(void *)bytes, bytes ? len : 0}};
  size_t whole = parts[0].iov_len + parts[1].iov_len + parts[2].iov_len;
  /* One call: a thread may end with its process between two. */
  if (syscall(SYS_writev, log_fd, parts, 3) != (long)whole) _exit(99);
  errno = kept;
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t offset) {
  char path[4096];
  if (!where(fd, path, sizeof path)) return syscall(SYS_pwrite64, fd, bytes, len, offset);
  pthread_mutex_lock(&lock);
  ssize_t done = -1;
  if (fails(path)) {
    int error = errno;
    syscall(SYS_pwrite64, fd, bytes, len / 2, offset);
    errno = error;
  } else {
    done = syscall(SYS_pwrite64, fd, bytes, len, offset);
    if (done > 0) record('w', path, (uint64_t)offset, bytes, (uint64_t)done);
  }
  pthread_mutex_unlock(&lock);
  return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t offset) {
  return pwrite64(fd, bytes, len, offset);
}

ssize_t write(int fd, const void *bytes, size_t len) {
  char path[4096];
  if (!where(fd, path, sizeof path)) return syscall(SYS_write, fd, bytes, len);
  pthread_mutex_lock(&lock);
  ssize_t done = -1;
  if (!fails(path)) {
    off_t offset = lseek(fd, 0, SEEK_CUR);
    done = syscall(SYS_write, fd, bytes, len);
    if (done > 0) record('w', path, (uint64_t)offset, bytes, (uint64_t)done);
  }
  pthread_mutex_unlock(&lock);
  return done;
}

static int sync_fd(int fd, long number) {
  char path[4096];
  if (!where(fd, path, sizeof path)) return (int)syscall(number, fd);
  pthread_mutex_lock(&lock);
  int done = -1;
  if (!fails(path)) {
    done = (int)syscall(number, fd);
    if (done == 0) record('s', path, 0, NULL, 0);
  }
  pthread_mutex_unlock(&lock);
  return done;
}

int fsync(int fd) { return sync_fd(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_fd(fd, SYS_fdatasync); }

int ftruncate64(int fd, off64_t len) {
  char path[4096];
  if (!where(fd, path, sizeof path)) return (int)syscall(SYS_ftruncate, fd, len);
  pthread_mutex_lock(&lock);
  int done = -1;
  if (!fails(path)) {
    done = (int)syscall(SYS_ftruncate, fd, len);
    if (done == 0) record('t', path, (uint64_t)len, NULL, 0);
  }
  pthread_mutex_unlock(&lock);
  return done;
}

int ftruncate(int fd, off_t len) { return ftruncate64(fd, len); }

int unlink(const char *path) {
  if (!below(path)) return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
  pthread_mutex_lock(&lock);
  int done = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
  if (done == 0) record('u', path, 0, NULL, 0);
  pthread_mutex_unlock(&lock);
  return done;
}

/* A read-only file system opens no file for writing. */
int open64(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  int mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, int) : 0;
  va_end(rest);
  const char *error = getenv("SHIM_ERRNO");
  if ((flags & O_ACCMODE) != O_RDONLY && below(path) && error && atoi(error) == EROFS) {
    pthread_mutex_lock(&lock);
    int failed = fails(path);
    pthread_mutex_unlock(&lock);
    if (failed) return -1;
  }
  return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  int mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, int) : 0;
  va_end(rest);
  return open64(path, flags, mode);
}
