/* The file system of a sandbox: an overlay on a small private tmpfs, read-only binds, /proc, /dev, and nothing of the host.
 *
 * All mounts are made by the launcher's own privileges in the sandbox's private mount namespace, before the user namespace is
 * entered: afterwards nobody inside, not even root, owns the mount namespace, and a crash leaves no mount behind.
 * What every sandbox shares (device nodes, read-only binds) is prepared once and costs each sandbox one mount call.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "box.h"

#define MAX_BINDS 64
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

static char base[512]; /* our tmpfs: dev/ binds/N root/ private/ snapshots/N */
static struct { char *source; dev_t device; ino_t inode; } binds[MAX_BINDS];
static int bind_count, bind_next;

static int make_read_only(const char *path) {
    struct { uint64_t set, clear, propagation, userns; } attributes = {0x1 | 0x2 | 0x4, 0, 0, 0}; /* RDONLY NOSUID NODEV */
    return (int)syscall(SYS_mount_setattr, AT_FDCWD, path, 0x8000 /* AT_RECURSIVE */, &attributes, sizeof attributes);
}

/* Detach what sandboxes never need, so that each copies fewer mounts: control groups, devices. */
static void shed_mounts(void) {
    FILE *file = fopen("/proc/self/mountinfo", "re");
    char line[4096], *found[256];
    int count = 0;
    while (file && count < 256 && fgets(line, sizeof line, file)) {
        char point[2048];
        if (sscanf(line, "%*d %*d %*s %*s %2047s", point) != 1)
            continue;
        if (!strcmp(point, "/sys") || (!strncmp(point, "/dev/", 5) && strcmp(point, "/dev/shm")) ||
            (!strncmp(point, "/proc/", 6)))
            found[count++] = strdup(point);
    }
    if (file)
        fclose(file);
    while (count--) {
        umount2(found[count], MNT_DETACH);
        free(found[count]);
    }
}

static int make_devices(enum map_mode mode) {
    static const struct { const char *name; int minor; } nodes[] = {
        {"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}, {"tty", 0}};
    static const char *const links[][2] = {{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
                                           {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"}};
    char path[640], host[64];
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        snprintf(path, sizeof path, "%s/dev/%s", base, nodes[i].name);
        if (mode == MAP_ROOT) {
            if (mknod(path, S_IFCHR | 0666, makedev(strcmp(nodes[i].name, "tty") ? 1 : 5, nodes[i].minor)))
                return -1;
            continue;
        }
        snprintf(host, sizeof host, "/dev/%s", nodes[i].name);
        int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
        if (fd < 0)
            return -1;
        close(fd);
        if (mount(host, path, NULL, MS_BIND, NULL))
            return -1;
    }
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        snprintf(path, sizeof path, "%s/dev/%s", base, links[i][0]);
        if (symlink(links[i][1], path))
            return -1;
    }
    snprintf(path, sizeof path, "%s/dev/shm", base);
    if (mkdir(path, 01777))
        return -1;
    snprintf(path, sizeof path, "%s/dev/pts", base);
    if (mkdir(path, 0755))
        return -1;
    /* nodes stay writable through a read-only mount; NODEV must not be set on them */
    snprintf(path, sizeof path, "%s/dev", base);
    return mount(path, path, NULL, MS_BIND | MS_REC, NULL) ||
           mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL);
}

int root_prepare_launcher(const char *scratch, enum map_mode mode) {
    static const char *const folders[] = {"dev", "binds", "root", "private", "snapshots"};
    char path[640];
    snprintf(base, sizeof base, "%s", scratch);
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return -1;
    /* in a user namespace this tmpfs must allow device files to be bound onto it, so no NODEV */
    if (mount("gymsmith", base, "tmpfs", MS_NOSUID, "size=16m,mode=711"))
        return -1;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        snprintf(path, sizeof path, "%s/%s", base, folders[i]);
        if (mkdir(path, 0755))
            return -1;
    }
    if (make_devices(mode))
        return -1;
    if (mode == MAP_ROOT)
        shed_mounts();
    return 0;
}

/* A snapshot is a tmpfs of its own, seen by sandboxes made from now on. It is as large as what it was copied from could be. */
int root_snapshot(uint32_t number, uint64_t disk_bytes, uint64_t inodes) {
    char path[640], options[128];
    snprintf(path, sizeof path, "%s/snapshots/%u", base, number);
    snprintf(options, sizeof options, "size=%llu,nr_inodes=%llu,mode=711", (unsigned long long)disk_bytes, (unsigned long long)inodes);
    return mkdir(path, 0755) || mount("snapshot", path, "tmpfs", MS_NOSUID | MS_NODEV, options) ? errno : 0;
}

int root_fill_snapshot(uint32_t number, int upper) {
    char path[640];
    snprintf(path, sizeof path, "%s/snapshots/%u", base, number);
    int to = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return to < 0 ? errno : copy_tree(upper, to);
}

/* The sandboxes that stand on it keep it alive. */
void root_discard(uint32_t number) {
    char path[640];
    snprintf(path, sizeof path, "%s/snapshots/%u", base, number);
    umount2(path, MNT_DETACH);
    rmdir(path);
}

/* A read-only clone of a host directory, made once for as long as the path names the same directory; its index, or -1. */
int root_bind_index(const char *source) {
    char path[640];
    struct stat st;
    int index = 0;
    if (stat(source, &st))
        return -1;
    while (index < bind_count && strcmp(binds[index].source, source))
        index++;
    if (index < bind_count && binds[index].device == st.st_dev && binds[index].inode == st.st_ino)
        return index;
    if (index == MAX_BINDS)
        index = bind_next++ % MAX_BINDS;
    snprintf(path, sizeof path, "%s/binds/%d", base, index);
    if (index < bind_count) { /* sandboxes that use the old one have a mount of their own */
        umount2(path, MNT_DETACH);
        free(binds[index].source);
        binds[index].source = strdup("");
    }
    if ((mkdir(path, 0755) && errno != EEXIST) || mount(source, path, NULL, MS_BIND | MS_REC, NULL))
        return -1;
    if (make_read_only(path)) {
        int saved = errno;
        umount2(path, MNT_DETACH);
        errno = saved;
        return -1;
    }
    binds[index].source = strdup(source);
    binds[index].device = st.st_dev;
    binds[index].inode = st.st_ino;
    if (index == bind_count)
        bind_count++;
    return index;
}

/* Open a directory of the new root without ever leaving it, whatever links an image plants; make it when missing. */
static int open_inside(int root, const char *path, mode_t mode, uint32_t owner) {
    int fd = open_below(root, path, O_PATH | O_DIRECTORY, 0);
    if (fd >= 0 || errno != ENOENT)
        return fd;
    char parent[1024];
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    int above = root;
    const char *name = parent;
    if (slash) {
        *slash = 0;
        name = slash + 1;
        if (slash != parent && (above = open_inside(root, parent, 0755, owner)) < 0)
            return -1;
    }
    int made = mkdirat(above, name, mode);
    if (!made) {
        if (fchownat(above, name, owner, owner, AT_SYMLINK_NOFOLLOW))
            made = -1;
        if (!made && fchmodat(above, name, mode, 0))
            made = -1;
    }
    if (above != root)
        close(above);
    return made && errno != EEXIST ? -1 : open_below(root, path, O_PATH | O_DIRECTORY, 0);
}

static int mount_at(int target, const char *source, const char *type, unsigned long flags, const char *options) {
    char path[64];
    if (target < 0)
        return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", target);
    int result = mount(source, path, type, flags, options);
    int saved = errno;
    close(target);
    errno = saved;
    return result;
}

#define STEP(text, expression) do { *step = text; if (expression) return -1; } while (0)

static int mount_overlay(const struct create_request *request, const char **cursor, const char *upper, const char *work,
                         enum map_mode mode, const char **step) {
    static char options[4096];
    int length = snprintf(options, sizeof options, "lowerdir=");
    for (uint32_t i = 0; i < request->layers; i++, *cursor += strlen(*cursor) + 1) {
        int fd = open(*cursor, O_PATH | O_DIRECTORY | O_CLOEXEC);
        STEP(*cursor, fd < 0);
        /* by descriptor: short, and no character of a path can be mistaken for syntax */
        length += snprintf(options + length, sizeof options - (size_t)length, "%s/proc/self/fd/%d", i ? ":" : "", fd);
        errno = E2BIG;
        STEP("too many layers", length > (int)sizeof options - 1200);
    }
    int up = open(upper, O_PATH | O_DIRECTORY | O_CLOEXEC), wk = open(work, O_PATH | O_DIRECTORY | O_CLOEXEC);
    STEP("open the upper directory", up < 0 || wk < 0);
    /* attributes that only the host's root can write where we are that; else those that a user namespace may use */
    snprintf(options + length, sizeof options - (size_t)length, ",upperdir=/proc/self/fd/%d,workdir=/proc/self/fd/%d,%s", up, wk,
             mode == MAP_ROOT ? "redirect_dir=off,metacopy=off,index=off" : "userxattr");
    char target[640];
    snprintf(target, sizeof target, "%s/root", base);
    STEP("mount overlay", mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV, options));
    return 0;
}

static int mount_proc(int root, uint32_t owner, const char **step) {
    static const char *const masked[] = {"kcore", "keys", "kmsg", "kallsyms", "timer_list", "sysrq-trigger"};
    char null[640], path[64];
    /* wholly read-only: /proc/sys, /proc/bus, /proc/irq and every other switch of the kernel at the cost of one call */
    STEP("mount /proc", mount_at(open_inside(root, "proc", 0555, owner), "proc", "proc",
                                 MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
    snprintf(null, sizeof null, "%s/dev/null", base);
    for (size_t i = 0; i < sizeof masked / sizeof *masked; i++) {
        snprintf(path, sizeof path, "proc/%s", masked[i]);
        STEP("mask /proc", mount(null, path, NULL, MS_BIND, NULL) && errno != ENOENT);
    }
    return 0;
}

int root_enter(const struct create_request *request, const char *strings, enum map_mode mode, uint32_t shift,
               int *upper_fd, const char **step) {
    const char *cursor = strings;
    uint32_t owner = mode == MAP_ROOT ? shift : 0;
    char path[640], source[640], options[128], upper[640], work[640];

    cursor += strlen(cursor) + 1; /* workdir is made from inside */
    const char *given_upper = cursor;
    cursor += strlen(cursor) + 1;
    const char *given_work = cursor;
    cursor += strlen(cursor) + 1;

    snprintf(path, sizeof path, "%s/private", base);
    snprintf(options, sizeof options, "size=%llu,nr_inodes=%llu,mode=711", (unsigned long long)request->disk_bytes,
             (unsigned long long)request->inodes);
    STEP("mount private tmpfs", mount("private", path, "tmpfs", MS_NOSUID | MS_NODEV, options));
    snprintf(path, sizeof path, "%s/private/shm", base);
    STEP("make shm", mkdir(path, 01777));
    snprintf(upper, sizeof upper, "%s/private/upper", base);
    snprintf(work, sizeof work, "%s/private/work", base);
    if (*given_upper) {
        snprintf(upper, sizeof upper, "%s", given_upper);
        snprintf(work, sizeof work, "%s", given_work);
    } else {
        STEP("make upper", mkdir(upper, 0755) || mkdir(work, 0755) || (owner && chown(upper, owner, owner)));
    }
    if (mount_overlay(request, &cursor, upper, work, mode, step))
        return -1;
    STEP("open upper", (*upper_fd = open(upper, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0);

    snprintf(path, sizeof path, "%s/root", base);
    STEP("enter new root", chdir(path));
    int root = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (uint32_t i = 0; i < request->binds; i++) {
        int index = root_bind_index(cursor);
        STEP("bind a host directory", index < 0);
        cursor += strlen(cursor) + 1;
        snprintf(source, sizeof source, "%s/binds/%d", base, index);
        STEP("bind a host directory", mount_at(open_inside(root, cursor + (*cursor == '/'), 0755, owner), source, NULL, MS_BIND | MS_REC, NULL));
        cursor += strlen(cursor) + 1;
    }
    /* the image's own directories may be links; mounting over what they lead to inside the root is what the image meant */
    snprintf(source, sizeof source, "%s/dev", base);
    STEP("mount /dev", mount_at(open_inside(root, "dev", 0755, owner), source, NULL, MS_BIND | MS_REC, NULL));
    snprintf(source, sizeof source, "%s/private/shm", base);
    STEP("mount /dev/shm", mount_at(open_inside(root, "dev/shm", 0755, owner), source, NULL, MS_BIND, NULL));
    STEP("mount /dev/pts", mount_at(open_inside(root, "dev/pts", 0755, owner), "devpts", "devpts", MS_NOSUID | MS_NOEXEC,
                                    "newinstance,ptmxmode=0666,mode=620"));
    int tmp = open_inside(root, "tmp", 01777, owner);
    STEP("make /tmp", tmp < 0);
    close(tmp);
    if (mount_proc(root, owner, step))
        return -1;
    STEP("pivot_root", syscall(SYS_pivot_root, ".", "."));
    STEP("leave the host's root", umount2(".", MNT_DETACH) || chdir("/"));
    return 0;
}
