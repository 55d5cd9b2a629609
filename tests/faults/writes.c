/* Preloaded into a process: counts what it writes below one folder, and lets the K-th fail.

   Configured by writes_arm(), or from the environment for a process whose command line contains
   WRITES_WHO: WRITES_ROOT, WRITES_AT, WRITES_FAULT, WRITES_TRACE, WRITES_FIRED (see every_write.py).
   Not seen: stores to mapped memory (SQLite's -shm) and what libc does inside one of its calls. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum fault { COUNT, KILL, TORN, EIO_ONCE, ENOSPC_ONCE, FULL };
static const char *const fault_names[] = {"count", "kill", "torn", "eio", "enospc", "full"};

static char root[PATH_MAX];  /* empty: not armed */
static size_t root_length;
static char fired[PATH_MAX]; /* made when the fault happens: it happens in one process only */
static long at;
static enum fault fault;
static int trace = -1;
static atomic_long n_seen;
static atomic_int is_fired;

/* Bypasses the functions below. */
static int raw_open(const char *path, int flags) {
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0600);
}

static void note(int to, long place, const char *operation, const char *path) {
    char line[PATH_MAX + 64];
    int n = snprintf(line, sizeof line, "%ld %s %s\n", place, operation, path + root_length);
    syscall(SYS_write, to, line, (size_t)n);
}

void writes_arm(const char *folder, long place, const char *name, const char *trace_file,
                const char *fired_file) {
    for (fault = FULL; fault > COUNT && strcmp(name, fault_names[fault]); fault--) {
    }
    at = place;
    n_seen = 0;
    is_fired = 0;
    trace = *trace_file ? raw_open(trace_file, O_WRONLY | O_CREAT | O_APPEND) : -1;
    snprintf(fired, sizeof fired, "%s", fired_file);
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
}

long writes_count(void) { return n_seen; }

static const char *setting(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

__attribute__((constructor)) static void arm_from_environment(void) {
    char command[4096];
    const char *who = setting("WRITES_WHO");
    int file = *who ? raw_open("/proc/self/cmdline", O_RDONLY) : -1;
    if (file < 0) return;
    long n = syscall(SYS_read, file, command, sizeof command - 1);
    syscall(SYS_close, file);
    for (long i = 0; i < n; i++)
        if (!command[i]) command[i] = ' ';
    command[n > 0 ? n : 0] = 0;
    if (!strstr(command, who)) return;
    if (*setting("WRITES_NOT") && strstr(command, setting("WRITES_NOT"))) return;
    if (*setting("WRITES_FIRED") &&
        syscall(SYS_faccessat, AT_FDCWD, setting("WRITES_FIRED"), F_OK) == 0)
        return;
    writes_arm(setting("WRITES_ROOT"), atol(setting("WRITES_AT")), setting("WRITES_FAULT"),
               setting("WRITES_TRACE"), setting("WRITES_FIRED"));
}

/* The absolute path of `path`, taken from folder `at_folder`; of an open file where it is NULL. */
static const char *full_path(int at_folder, const char *path, char *buffer) {
    char link[64];
    if (path && *path == '/') return path;
    if (at_folder == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", at_folder);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
    if (n < 0) return "";
    buffer[n] = 0;
    if (path) snprintf(buffer + n, (size_t)(PATH_MAX - n), "/%s", path);
    return buffer;
}

/* Returns 0: go on; -1: it fails with errno; 1: write half of it, then die. */
static int place(const char *operation, int at_folder, const char *path, int takes_room) {
    char buffer[2 * PATH_MAX];
    if (!root_length) return 0;
    int before = errno;
    const char *whole = full_path(at_folder, path, buffer);
    if (strncmp(whole, root, root_length) || (whole[root_length] && whole[root_length] != '/'))
        return errno = before, 0;
    long mine = atomic_fetch_add(&n_seen, 1) + 1;
    if (trace >= 0) note(trace, mine, operation, whole);
    errno = before;
    if (fault == COUNT || mine < at) return 0;
    if (fault >= ENOSPC_ONCE && !takes_room) return 0;
    if (fault != FULL && atomic_exchange(&is_fired, 1)) return 0;
    if (*fired) {
        int file = raw_open(fired, O_WRONLY | O_CREAT | O_APPEND);
        note(file, mine, operation, whole);
        syscall(SYS_close, file);
    }
    if (fault == TORN && takes_room == 2) return 1;
    if (fault <= TORN) syscall(SYS_kill, getpid(), SIGKILL);
    errno = fault == EIO_ONCE ? EIO : ENOSPC;
    return -1;
}

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); }

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* A call that is one place. */
#define PLACE(type, name, parameters, arguments, folder, path, takes_room) \
    type name parameters { \
        REAL(name); \
        return place(#name, folder, path, takes_room) ? (type)-1 : real arguments; \
    }

/* A write of `size` bytes, of which a torn one writes half. */
#define WRITE(name, parameters, half, arguments) \
    ssize_t name parameters { \
        REAL(name); \
        int found = place(#name, file, NULL, 2); \
        if (found > 0) { real half; die(); } \
        return found ? -1 : real arguments; \
    }

WRITE(write, (int file, const void *data, size_t size), (file, data, size / 2), (file, data, size))
WRITE(pwrite, (int file, const void *data, size_t size, off_t to), (file, data, size / 2, to),
      (file, data, size, to))
WRITE(pwrite64, (int file, const void *data, size_t size, off64_t to), (file, data, size / 2, to),
      (file, data, size, to))
WRITE(writev, (int file, const struct iovec *parts, int n), (file, parts, n / 2), (file, parts, n))
WRITE(pwritev, (int file, const struct iovec *parts, int n, off_t to), (file, parts, n / 2, to),
      (file, parts, n, to))
WRITE(pwritev64, (int file, const struct iovec *parts, int n, off64_t to),
      (file, parts, n / 2, to), (file, parts, n, to))
WRITE(sendfile, (int file, int from, off_t *at, size_t n), (file, from, at, n / 2),
      (file, from, at, n))
WRITE(sendfile64, (int file, int from, off64_t *at, size_t n), (file, from, at, n / 2),
      (file, from, at, n))
WRITE(copy_file_range,
      (int from, off64_t *at_from, int file, off64_t *at_file, size_t n, unsigned flags),
      (from, at_from, file, at_file, n / 2, flags), (from, at_from, file, at_file, n, flags))

PLACE(int, fsync, (int file), (file), file, NULL, 0)
PLACE(int, fdatasync, (int file), (file), file, NULL, 0)
PLACE(int, ftruncate, (int file, off_t n), (file, n), file, NULL, 0)
PLACE(int, ftruncate64, (int file, off64_t n), (file, n), file, NULL, 0)
PLACE(int, truncate, (const char *path, off_t n), (path, n), AT_FDCWD, path, 0)
PLACE(int, truncate64, (const char *path, off64_t n), (path, n), AT_FDCWD, path, 0)
PLACE(int, fallocate, (int file, int mode, off_t at, off_t n), (file, mode, at, n), file, NULL, 1)
PLACE(int, fallocate64, (int file, int mode, off64_t at, off64_t n), (file, mode, at, n), file,
      NULL, 1)
PLACE(int, unlink, (const char *path), (path), AT_FDCWD, path, 0)
PLACE(int, unlinkat, (int folder, const char *path, int flags), (folder, path, flags), folder,
      path, 0)
PLACE(int, rmdir, (const char *path), (path), AT_FDCWD, path, 0)
PLACE(int, remove, (const char *path), (path), AT_FDCWD, path, 0)
PLACE(int, rename, (const char *from, const char *to), (from, to), AT_FDCWD, to, 0)
PLACE(int, renameat, (int from_folder, const char *from, int folder, const char *to),
      (from_folder, from, folder, to), folder, to, 0)
PLACE(int, renameat2,
      (int from_folder, const char *from, int folder, const char *to, unsigned flags),
      (from_folder, from, folder, to, flags), folder, to, 0)
PLACE(int, link, (const char *from, const char *to), (from, to), AT_FDCWD, to, 1)
PLACE(int, linkat, (int from_folder, const char *from, int folder, const char *to, int flags),
      (from_folder, from, folder, to, flags), folder, to, 1)
PLACE(int, symlink, (const char *from, const char *to), (from, to), AT_FDCWD, to, 1)
PLACE(int, mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path, 1)
PLACE(int, mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode), folder,
      path, 1)
PLACE(int, creat, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path, 1)
PLACE(int, creat64, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path, 1)

/* posix_fallocate returns the error instead of setting errno. */
int posix_fallocate(int file, off_t at, off_t n) {
    REAL(posix_fallocate);
    return place("posix_fallocate", file, NULL, 1) ? errno : real(file, at, n);
}

int posix_fallocate64(int file, off64_t at, off64_t n) {
    REAL(posix_fallocate64);
    return place("posix_fallocate64", file, NULL, 1) ? errno : real(file, at, n);
}

/* Only opening for writing is a place; it takes room where the file is made by it. */
static int opening(const char *operation, int folder, const char *path, int flags) {
    if ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT)) return 0;
    int is_made = (flags & O_CREAT) && syscall(SYS_faccessat, folder, path, F_OK) != 0;
    return place(operation, folder, path, is_made);
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE(flags)
    return opening("open", AT_FDCWD, path, flags) ? -1 : real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE(flags)
    return opening("open64", AT_FDCWD, path, flags) ? -1 : real(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    REAL(openat);
    MODE(flags)
    return opening("openat", folder, path, flags) ? -1 : real(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    REAL(openat64);
    MODE(flags)
    return opening("openat64", folder, path, flags) ? -1 : real(folder, path, flags, mode);
}

static int stream_flags(const char *mode) {
    return *mode == 'r' && !strchr(mode, '+') ? O_RDONLY : O_WRONLY | O_CREAT;
}

FILE *fopen(const char *path, const char *mode) {
    REAL(fopen);
    return opening("fopen", AT_FDCWD, path, stream_flags(mode)) ? NULL : real(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    REAL(fopen64);
    return opening("fopen64", AT_FDCWD, path, stream_flags(mode)) ? NULL : real(path, mode);
}
