/* Preloaded into a process and its children: counts calls, and lets the n-th one of a kind fail.
 *
 * FAULT_COUNTERS names a file of five int64: calls of write, fsync, rename, reads of images, and which call is to fail (0: none).
 * FAULT_KIND is write, fsync or rename; FAULT_ROOT the folder below which calls count. Reads of 1 KiB and more of
 * .jpg files always count: an image is read once for each time that it is decoded.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE, FSYNC, RENAME, IMAGE, FAIL_AT };
static const char *NAMES[] = {"write", "fsync", "rename"};
static volatile int64_t *counters;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULT_COUNTERS");
    int descriptor = path ? open(path, O_RDWR) : -1;
    if (descriptor < 0) return;
    void *memory = mmap(NULL, 40, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    counters = memory == MAP_FAILED ? NULL : memory;
}

static int is_below_root(const char *path) {
    const char *root = getenv("FAULT_ROOT");
    return root && strncmp(path, root, strlen(root)) == 0;
}

static int fails(int kind, const char *path) {
    const char *wanted = getenv("FAULT_KIND");
    if (!counters || !is_below_root(path)) return 0;
    int64_t number = __sync_add_and_fetch(&counters[kind], 1);
    if (!wanted || strcmp(wanted, NAMES[kind]) != 0 || number != counters[FAIL_AT]) return 0;
    errno = kind == WRITE ? ENOSPC : EIO;
    return 1;
}

static ssize_t path_of(int descriptor, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t n = readlink(link, path, size - 1);
    path[n < 0 ? 0 : n] = 0;
    return n;
}

static int fails_at(int kind, int descriptor) {
    char path[4096];
    return path_of(descriptor, path, sizeof path) >= 0 && fails(kind, path);
}

#define NEXT(name, ...) ((__VA_ARGS__) dlsym(RTLD_NEXT, name))

ssize_t write(int descriptor, const void *data, size_t n) {
    return fails_at(WRITE, descriptor) ? -1 : NEXT("write", ssize_t (*)(int, const void *, size_t))(descriptor, data, n);
}

ssize_t writev(int descriptor, const struct iovec *parts, int n) {
    return fails_at(WRITE, descriptor) ? -1 : NEXT("writev", ssize_t (*)(int, const struct iovec *, int))(descriptor, parts, n);
}

ssize_t pwrite(int descriptor, const void *data, size_t n, off_t at) {
    return fails_at(WRITE, descriptor) ? -1 : NEXT("pwrite", ssize_t (*)(int, const void *, size_t, off_t))(descriptor, data, n, at);
}

ssize_t pwrite64(int descriptor, const void *data, size_t n, off64_t at) {
    return fails_at(WRITE, descriptor) ? -1 : NEXT("pwrite64", ssize_t (*)(int, const void *, size_t, off64_t))(descriptor, data, n, at);
}

ssize_t pwritev(int descriptor, const struct iovec *parts, int n, off_t at) {
    return fails_at(WRITE, descriptor) ? -1 : NEXT("pwritev", ssize_t (*)(int, const struct iovec *, int, off_t))(descriptor, parts, n, at);
}

ssize_t pwritev64(int descriptor, const struct iovec *parts, int n, off64_t at) {
    return fails_at(WRITE, descriptor) ? -1 : NEXT("pwritev64", ssize_t (*)(int, const struct iovec *, int, off64_t))(descriptor, parts, n, at);
}

int fsync(int descriptor) { return fails_at(FSYNC, descriptor) ? -1 : NEXT("fsync", int (*)(int))(descriptor); }

int rename(const char *from, const char *to) {
    return fails(RENAME, to) ? -1 : NEXT("rename", int (*)(const char *, const char *))(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    return fails(RENAME, to) ? -1 : NEXT("renameat", int (*)(int, const char *, int, const char *))(from_folder, from, to_folder, to);
}

static void count_image(int descriptor, size_t n) {
    char path[4096];
    if (!counters || n < 1024 || path_of(descriptor, path, sizeof path) < 4) return;
    if (strcmp(path + strlen(path) - 4, ".jpg") == 0) __sync_add_and_fetch(&counters[IMAGE], 1);
}

ssize_t pread(int descriptor, void *data, size_t n, off_t at) {
    count_image(descriptor, n);
    return NEXT("pread", ssize_t (*)(int, void *, size_t, off_t))(descriptor, data, n, at);
}

ssize_t pread64(int descriptor, void *data, size_t n, off64_t at) {
    count_image(descriptor, n);
    return NEXT("pread64", ssize_t (*)(int, void *, size_t, off64_t))(descriptor, data, n, at);
}
