/* What a process asks of the files in one folder, written down call by call: loaded before the C library by LD_PRELOAD.
 *
 * POWER_FOLDER   the folder, an absolute path without links
 * POWER_TRACE    the file that takes the calls, outside of it
 * POWER_KILL_AT  the process ends by SIGKILL before the call of this number, from 0; none below 0
 * POWER_COUNTED  letters of the calls that are counted for that
 *
 * An event is a letter, the length of a name (1 byte), two numbers (8 bytes each, as the machine has them), the name
 * below the folder, and where there is data so many bytes as the second number says. system_calls.py reads them.
 *
 *   C  created                 W  written at the first number, with the data
 *   T  cut, or grown, to it    S  synchronised; the folder itself has the name "."
 *   U  unlinked                M  a mark of the process itself, with the data
 *
 * For 64-bit Linux and processes that write from one thread. Nothing is really synchronised: here no power is lost. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "offsets have 64 bits");

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const char *folder, *counted;
static int trace = -1;
static long kill_at = -1, num_calls;

static int real_open(const char *path, int flags, mode_t mode) { return NEXT(open)(path, flags, mode); }

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("POWER_TRACE"), *number = getenv("POWER_KILL_AT");
    if (!path || !getenv("POWER_FOLDER"))
        return;
    kill_at = number ? atol(number) : -1;
    counted = getenv("POWER_COUNTED");
    trace = real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (trace >= 0)
        folder = getenv("POWER_FOLDER");
}

/* The name below the folder, "." of the folder itself, NULL of what lies elsewhere. */
static const char *name_of_path(const char *path) {
    size_t length = folder ? strlen(folder) : 0;
    if (!folder || strncmp(path, folder, length))
        return NULL;
    if (!path[length])
        return ".";
    return path[length] == '/' ? path + length + 1 : NULL;
}

static const char *name_of_file(int file, char *path) {
    char link[32];
    ssize_t length;
    if (!folder)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return NULL;
    path[length] = 0;
    return name_of_path(path);
}

static void count_call(char kind) {
    if (counted && strchr(counted, kind) && num_calls++ == kill_at)
        kill(getpid(), SIGKILL);
}

static void note(char kind, const char *name, uint64_t first, uint64_t second, const struct iovec *parts, int num_parts) {
    char head[18] = {kind, (char)strlen(name)};
    struct iovec all[3] = {{head, sizeof head}, {(char *)name, strlen(name)}, {NULL, 0}};
    char *data = malloc(second + 1), *end = data;
    size_t left = num_parts ? second : 0;
    memcpy(head + 2, &first, 8);
    memcpy(head + 10, &second, 8);
    for (int part = 0; part < num_parts && left; part++) {
        size_t length = parts[part].iov_len < left ? parts[part].iov_len : left;
        memcpy(end, parts[part].iov_base, length);
        end += length;
        left -= length;
    }
    all[2].iov_base = data;
    all[2].iov_len = (size_t)(end - data);
    if (NEXT(writev)(trace, all, 3) != (ssize_t)(sizeof head + all[1].iov_len + all[2].iov_len))
        abort();
    free(data);
}

/* Called by the process: what it is about to do, or has done. */
void power_mark(const char *data, uint64_t length) {
    struct iovec part = {(char *)data, length};
    if (folder)
        note('M', "-", 0, length, &part, 1);
}

static ssize_t written(const char *name, off_t offset, ssize_t result, const struct iovec *parts, int num_parts) {
    if (name && result > 0)
        note('W', name, (uint64_t)offset, (uint64_t)result, parts, num_parts);
    return result;
}

ssize_t pwrite(int file, const void *data, size_t length, off_t offset) {
    char path[PATH_MAX];
    const char *name = name_of_file(file, path);
    struct iovec part = {(void *)data, length};
    if (name)
        count_call('W');
    return written(name, offset, NEXT(pwrite)(file, data, length, offset), &part, 1);
}

ssize_t pwrite64(int file, const void *data, size_t length, off_t offset) { return pwrite(file, data, length, offset); }

ssize_t pwritev2(int file, const struct iovec *parts, int num_parts, off_t offset, int flags) {
    char path[PATH_MAX];
    const char *name = name_of_file(file, path);
    if (name)
        count_call('W');
    return written(name, offset, NEXT(pwritev2)(file, parts, num_parts, offset, flags), parts, num_parts);
}

ssize_t pwritev64v2(int file, const struct iovec *parts, int num_parts, off_t offset, int flags) {
    return pwritev2(file, parts, num_parts, offset, flags);
}

ssize_t pwritev(int file, const struct iovec *parts, int num_parts, off_t offset) {
    return pwritev2(file, parts, num_parts, offset, 0);
}

ssize_t pwritev64(int file, const struct iovec *parts, int num_parts, off_t offset) {
    return pwritev2(file, parts, num_parts, offset, 0);
}

ssize_t write(int file, const void *data, size_t length) {
    char path[PATH_MAX];
    const char *name = name_of_file(file, path);
    struct iovec part = {(void *)data, length};
    off_t offset = 0;
    if (name) {
        count_call('W');
        offset = lseek(file, 0, fcntl(file, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    }
    return written(name, offset, NEXT(write)(file, data, length), &part, 1);
}

int fsync(int file) {
    char path[PATH_MAX];
    const char *name = name_of_file(file, path);
    if (!name)
        return NEXT(fsync)(file);
    count_call('S');
    note('S', name, 0, 0, NULL, 0);
    return 0;
}

int fdatasync(int file) { return fsync(file); }

int ftruncate(int file, off_t length) {
    char path[PATH_MAX];
    const char *name = name_of_file(file, path);
    int result;
    if (name)
        count_call('T');
    result = NEXT(ftruncate)(file, length);
    if (name && !result)
        note('T', name, (uint64_t)length, 0, NULL, 0);
    return result;
}

int ftruncate64(int file, off_t length) { return ftruncate(file, length); }

int unlink(const char *path) {
    const char *name = name_of_path(path);
    int result;
    if (name)
        count_call('U');
    result = NEXT(unlink)(path);
    if (name && !result)
        note('U', name, 0, 0, NULL, 0);
    return result;
}

int open(const char *path, int flags, ...) {
    const char *name = flags & O_CREAT ? name_of_path(path) : NULL;
    int is_new = name && access(path, F_OK), file;
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    if (is_new)
        count_call('C');
    file = real_open(path, flags, mode);
    if (is_new && file >= 0)
        note('C', name, 0, 0, NULL, 0);
    return file;
}

int open64(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    return open(path, flags, mode);
}
