// Notes every change of files below a directory, and fails calls on demand. Preloaded into a child
// process by the tests; the store knows nothing of it. Built by `recorder.rs`, which also reads what
// it writes.
//
// BYOKV_RECORD_DIR    the directory that is watched (absolute, no symbolic links)
// BYOKV_RECORD_LOG    where the record goes, behind what is there; a sync is then only noted
// BYOKV_RECORD_SYNCS  if set, a sync is made too, not only noted
// BYOKV_RECORD_FAULT  "class:k:errno": from the mark "arm" on the k-th call of the class fails
//                     ("class:k:errno+": and all later ones); errno 0 writes half of the bytes
// Removing a file "@mark/TEXT" notes TEXT as a mark, and removes nothing. Between the marks "full"
// and "space" no file may grow. The mark "end" ends the process, as a kill does, but between two
// changes: no other thread is left with one that was made and not noted.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, SYNC_BEGINS, SYNC_ENDED, RENAME, EXCHANGE, UNLINK, MKDIR, RMDIR,
       MARK, LINK, RANGE };
enum { MOST_FDS = 4096 };
#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static char dir[PATH_MAX];
static size_t dir_len;
static int log_fd = -1;
static unsigned char watched[MOST_FDS];
static char fault_class[16];
static long fault_at = -1, fault_seen;
static int fault_errno, fault_stays, armed, no_space, syncs;

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })

__attribute__((constructor)) static void start(void) {
    const char *text = getenv("BYOKV_RECORD_DIR");
    if (!text) return;
    snprintf(dir, sizeof dir, "%s", text);
    dir_len = strlen(dir);
    if ((text = getenv("BYOKV_RECORD_LOG")))
        log_fd = syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    syncs = log_fd < 0 || getenv("BYOKV_RECORD_SYNCS");
    if ((text = getenv("BYOKV_RECORD_FAULT"))) {
        char plus = 0;
        sscanf(text, "%15[a-z]:%ld:%d%c", fault_class, &fault_at, &fault_errno, &plus);
        fault_stays = plus == '+';
    }
}

static void note(uint8_t kind, uint64_t a, uint64_t b, const void *data, size_t len) {
    if (log_fd < 0) return;
    unsigned char head[21];
    uint32_t size = len;
    head[0] = kind;
    memcpy(head + 1, &a, 8);
    memcpy(head + 9, &b, 8);
    memcpy(head + 17, &size, 4);
    struct iovec parts[2] = {{head, sizeof head}, {(void *)data, len}};
    if (syscall(SYS_writev, log_fd, parts, 2) != (long)(sizeof head + len)) abort();
}

static void note_paths(uint8_t kind, const char *from, const char *to) {
    char both[2 * PATH_MAX];
    int len = snprintf(both, sizeof both, "%s%c%s", from, 0, to);
    note(kind, 0, 0, both, len);
}

// Whether this call is the one that is to fail; its errno is set. Under the lock.
static int fails(const char *class) {
    if (!armed || fault_at < 0 || strcmp(class, fault_class)) return 0;
    long seen = ++fault_seen;
    if (seen != fault_at && !(fault_stays && seen > fault_at)) return 0;
    static const char said[] = "\nrecorder: failed a call\n";
    syscall(SYS_write, 2, said, sizeof said - 1);
    errno = fault_errno;
    return 1;
}

static int is_inside(const char *path) {
    return dir_len && !strncmp(path, dir, dir_len) && (path[dir_len] == '/' || !path[dir_len]);
}

// The absolute path of a name as a call gives it.
static void resolve(int at, const char *path, char *out) {
    char base[PATH_MAX / 2] = "", link[64];
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    if (at == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t len = readlink(link, base, sizeof base - 1);
    snprintf(out, PATH_MAX, "%.*s/%s", (int)(len > 0 ? len : 0), base, path);
}

static uint64_t inode(int fd) {
    struct stat st;
    return fstat(fd, &st) ? 0 : st.st_ino;
}

static int is_watched(int fd) { return fd >= 0 && fd < MOST_FDS && watched[fd]; }

static int open_in(int at, const char *path, int flags, mode_t mode) {
    int (*real)(int, const char *, int, ...) = REAL(openat);
    char full[PATH_MAX];
    if (!dir_len) return real(at, path, flags, mode);
    resolve(at, path, full);
    if (!is_inside(full)) return real(at, path, flags, mode);
    pthread_mutex_lock(&order);
    int is_new = (flags & O_CREAT) && faccessat(at, path, F_OK, AT_SYMLINK_NOFOLLOW);
    int fd = is_new && fails("create") ? -1 : real(at, path, flags, mode);
    int why = errno;
    if (fd >= 0 && fd < MOST_FDS) {
        watched[fd] = 1;
        if (is_new) note(CREATE, inode(fd), 0, full, strlen(full));
        else if (flags & O_TRUNC) note(TRUNCATE, inode(fd), 0, 0, 0);
    }
    pthread_mutex_unlock(&order);
    errno = why;
    return fd;
}

#define MODE(flags) ({ mode_t m = 0; if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list l; \
    va_start(l, flags); m = va_arg(l, mode_t); va_end(l); } m; })
int open(const char *path, int flags, ...) { return open_in(AT_FDCWD, path, flags, MODE(flags)); }
int open64(const char *path, int flags, ...) { return open_in(AT_FDCWD, path, flags, MODE(flags)); }
int openat(int at, const char *path, int flags, ...) { return open_in(at, path, flags, MODE(flags)); }
int openat64(int at, const char *path, int flags, ...) { return open_in(at, path, flags, MODE(flags)); }

int close(int fd) {
    if (is_watched(fd)) {
        pthread_mutex_lock(&order);
        watched[fd] = 0;
        pthread_mutex_unlock(&order);
    }
    return REAL(close)(fd);
}

// `at` < 0 writes where the file stands.
static ssize_t write_at(int fd, const void *data, size_t len, off_t at) {
    pthread_mutex_lock(&order);
    if (fails("write")) {
        int why = errno;
        if (why || len < 2) {
            pthread_mutex_unlock(&order);
            errno = why ? why : EIO;
            return -1;
        }
        len /= 2;
    }
    struct stat st;
    off_t offset = at < 0 ? lseek(fd, 0, SEEK_CUR) : at;
    if (at < 0 && (fcntl(fd, F_GETFL) & O_APPEND)) offset = lseek(fd, 0, SEEK_END);
    if (no_space && !fstat(fd, &st) && offset + (off_t)len > st.st_size) {
        pthread_mutex_unlock(&order);
        errno = ENOSPC;
        return -1;
    }
    ssize_t wrote = at < 0 ? REAL(write)(fd, data, len) : REAL(pwrite)(fd, data, len, at);
    int why = errno;
    if (wrote > 0) note(WRITE, inode(fd), offset, data, wrote);
    pthread_mutex_unlock(&order);
    errno = why;
    return wrote;
}

static int fails_to_read(int fd) {
    if (!is_watched(fd)) return 0;
    pthread_mutex_lock(&order);
    int failed = fails("read"), why = errno;
    pthread_mutex_unlock(&order);
    errno = why;
    return failed;
}
ssize_t read(int fd, void *data, size_t len) {
    return fails_to_read(fd) ? -1 : REAL(read)(fd, data, len);
}
ssize_t pread(int fd, void *data, size_t len, off_t at) {
    return fails_to_read(fd) ? -1 : REAL(pread)(fd, data, len, at);
}
ssize_t pread64(int fd, void *data, size_t len, off64_t at) {
    return fails_to_read(fd) ? -1 : REAL(pread)(fd, data, len, at);
}

ssize_t write(int fd, const void *data, size_t len) {
    return is_watched(fd) ? write_at(fd, data, len, -1) : REAL(write)(fd, data, len);
}
ssize_t pwrite(int fd, const void *data, size_t len, off_t at) {
    return is_watched(fd) ? write_at(fd, data, len, at) : REAL(pwrite)(fd, data, len, at);
}
ssize_t pwrite64(int fd, const void *data, size_t len, off64_t at) {
    return is_watched(fd) ? write_at(fd, data, len, at) : REAL(pwrite)(fd, data, len, at);
}
// Not used on watched files by the store; a test would miss them silently.
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (is_watched(fd)) abort();
    return REAL(writev)(fd, parts, count);
}

int ftruncate64(int fd, off64_t len) {
    if (!is_watched(fd)) return REAL(ftruncate)(fd, len);
    pthread_mutex_lock(&order);
    int done = fails("truncate") ? -1 : REAL(ftruncate)(fd, len);
    int why = errno;
    if (!done) note(TRUNCATE, inode(fd), len, 0, 0);
    pthread_mutex_unlock(&order);
    errno = why;
    return done;
}
int ftruncate(int fd, off_t len) { return ftruncate64(fd, len); }

static int sync_file(int fd, int (*real)(int)) {
    static uint64_t last;
    char link[64], path[PATH_MAX];
    if (!is_watched(fd)) return real(fd);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path);
    pthread_mutex_lock(&order);
    if (!last) last = (uint64_t)getpid() << 32;
    uint64_t mine = ++last;
    int failed = fails("sync"), why = errno;
    if (!failed) note(SYNC_BEGINS, inode(fd), mine, path, len > 0 ? len : 0);
    pthread_mutex_unlock(&order);
    if (failed) {
        errno = why;
        return -1;
    }
    int done = syncs ? real(fd) : usleep(300);
    why = errno;
    pthread_mutex_lock(&order);
    if (!done) note(SYNC_ENDED, 0, mine, 0, 0);
    pthread_mutex_unlock(&order);
    errno = why;
    return done;
}
int fsync(int fd) { return sync_file(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_file(fd, REAL(fdatasync)); }

int sync_file_range(int fd, off64_t at, off64_t len, unsigned flags) {
    if (!is_watched(fd)) return REAL(sync_file_range)(fd, at, len, flags);
    pthread_mutex_lock(&order);
    int failed = fails("range"), why = errno;
    if (!failed) note(RANGE, inode(fd), at, 0, 0);
    pthread_mutex_unlock(&order);
    if (!failed && syncs) return REAL(sync_file_range)(fd, at, len, flags);
    errno = why;
    return failed ? -1 : 0;
}

static int rename_in(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char a[PATH_MAX], b[PATH_MAX];
    resolve(from_at, from, a);
    resolve(to_at, to, b);
    int (*real)(int, const char *, int, const char *, unsigned) = REAL(renameat2);
    if (!is_inside(a) && !is_inside(b)) return real(from_at, from, to_at, to, flags);
    pthread_mutex_lock(&order);
    int done = fails("rename") ? -1 : real(from_at, from, to_at, to, flags);
    int why = errno;
    if (!done) note_paths(flags & RENAME_EXCHANGE ? EXCHANGE : RENAME, a, b);
    pthread_mutex_unlock(&order);
    errno = why;
    return done;
}
int rename(const char *from, const char *to) { return rename_in(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return rename_in(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    return rename_in(a, from, b, to, flags);
}

static int remove_in(int at, const char *path, int flags) {
    char full[PATH_MAX];
    int (*real)(int, const char *, int) = REAL(unlinkat);
    if (!strncmp(path, "@mark/", 6)) {
        pthread_mutex_lock(&order);
        if (!strcmp(path, "@mark/arm")) armed = 1, fault_seen = 0;
        if (!strcmp(path, "@mark/full")) no_space = 1;
        if (!strcmp(path, "@mark/space")) no_space = 0;
        note(MARK, 0, 0, path + 6, strlen(path + 6));
        if (!strcmp(path, "@mark/end")) abort();
        pthread_mutex_unlock(&order);
        errno = ENOENT;
        return -1;
    }
    resolve(at, path, full);
    if (!is_inside(full)) return real(at, path, flags);
    pthread_mutex_lock(&order);
    int done = fails("remove") ? -1 : real(at, path, flags);
    int why = errno;
    if (!done) note(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, 0, full, strlen(full));
    pthread_mutex_unlock(&order);
    errno = why;
    return done;
}
int unlink(const char *path) { return remove_in(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return remove_in(at, path, flags); }
int rmdir(const char *path) { return remove_in(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdir(const char *path, mode_t mode) {
    char full[PATH_MAX];
    resolve(AT_FDCWD, path, full);
    if (!is_inside(full)) return REAL(mkdir)(path, mode);
    pthread_mutex_lock(&order);
    int done = fails("create") ? -1 : REAL(mkdir)(path, mode);
    int why = errno;
    if (!done) note(MKDIR, 0, 0, full, strlen(full));
    pthread_mutex_unlock(&order);
    errno = why;
    return done;
}

static void tell_full(struct statvfs *disk) {
    if (no_space) disk->f_bavail = disk->f_bfree = 0;
}
int fstatvfs(int fd, struct statvfs *disk) {
    int done = REAL(fstatvfs)(fd, disk);
    if (!done) tell_full(disk);
    return done;
}
int fstatvfs64(int fd, struct statvfs64 *disk) {
    int done = REAL(fstatvfs64)(fd, disk);
    if (!done) tell_full((struct statvfs *)disk);
    return done;
}

static int link_in(int from_at, const char *from, int to_at, const char *to, int flags) {
    char a[PATH_MAX], b[PATH_MAX];
    int (*real)(int, const char *, int, const char *, int) = REAL(linkat);
    resolve(from_at, from, a);
    resolve(to_at, to, b);
    if (!is_inside(b)) return real(from_at, from, to_at, to, flags);
    pthread_mutex_lock(&order);
    int done = fails("link") ? -1 : real(from_at, from, to_at, to, flags);
    int why = errno;
    if (!done) note_paths(LINK, a, b);
    pthread_mutex_unlock(&order);
    errno = why;
    return done;
}
int link(const char *from, const char *to) { return link_in(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    return link_in(from_at, from, to_at, to, flags);
}
