/* What a sandbox may not do: capabilities, resource limits, system calls. The tables mirror CAPABILITY_TABLE in base.py. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "box.h"

#define CAP(name) (1ull << CAP_##name)
#define RESIDENT_CAPS \
    (CAP(CHOWN) | CAP(DAC_OVERRIDE) | CAP(DAC_READ_SEARCH) | CAP(FOWNER) | CAP(KILL) | CAP(SETGID) | CAP(SETUID))
#define EXAMINER_CAPS CAP(DAC_READ_SEARCH)
#define BUILD_CAPS (RESIDENT_CAPS | CAP(FSETID) | CAP(NET_BIND_SERVICE) | CAP(SETFCAP) | CAP(SYS_CHROOT))

static int set_capabilities(uint64_t keep, uint64_t inherit) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{(uint32_t)keep, (uint32_t)keep, (uint32_t)inherit},
                                             {(uint32_t)(keep >> 32), (uint32_t)(keep >> 32), (uint32_t)(inherit >> 32)}};
    return (int)syscall(SYS_capset, &header, data);
}

int confine_limits(const struct create_request *request, const char **step) {
    struct { int what; uint64_t value; } limits[] = {
        {RLIMIT_CORE, 0}, {RLIMIT_NOFILE, request->open_files}, {RLIMIT_NPROC, request->processes},
        {RLIMIT_FSIZE, request->file_bytes}, {RLIMIT_DATA, request->data_bytes}, {RLIMIT_MEMLOCK, 1 << 20},
        {RLIMIT_MSGQUEUE, 1 << 20}, {RLIMIT_SIGPENDING, 4096}, {RLIMIT_RTPRIO, 0}, {RLIMIT_NICE, 0}};
    *step = "set resource limits";
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit limit, old;
        if (!limits[i].value && (limits[i].what == RLIMIT_DATA || limits[i].what == RLIMIT_FSIZE))
            continue; /* 0: a control group or the file system itself is the limit */
        limit.rlim_cur = limit.rlim_max = limits[i].value;
        if (getrlimit(limits[i].what, &old))
            return -1;
        if (old.rlim_max != RLIM_INFINITY && (limit.rlim_max > old.rlim_max))
            limit.rlim_cur = limit.rlim_max = old.rlim_max; /* a limit of the host stands */
        if (setrlimit(limits[i].what, &limit))
            return -1;
    }
    return 0;
}

/* For PID 1: from here on neither it nor anything it starts can gain a capability that is not in the table. */
int confine_resident(int build, const char **step) {
    uint64_t keep = build ? BUILD_CAPS : RESIDENT_CAPS;
    *step = "drop capabilities";
    for (int cap = 0; cap < 64; cap++)
        if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)) {
            if (errno == EINVAL)
                break; /* beyond the kernel's last one */
            if (errno != EPERM)
                return -1; /* EPERM: a container engine has already dropped them and the right to drop more */
        }
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct have[2];
    if (syscall(SYS_capget, &header, have))
        return -1;
    keep &= have[0].permitted | (uint64_t)have[1].permitted << 32;
    if (set_capabilities(keep, 0))
        return -1;
    *step = "no_new_privs";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -1;
    *step = "make PID 1 untraceable";
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
        return -1;
    *step = "seccomp";
    return confine_filter();
}

/* For a command, around the setting of its ids. A workload holds nothing, also as root; but imported tests read what an agent
 * has closed to others, as the verifiers of other harnesses do, which run as root. Where PID 1 may not, they do without. */
int confine_keep(uint32_t uid, uint32_t gid) {
    return uid == EXAMINER_UID && gid == EXAMINER_GID ? prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) : 0;
}

int confine_command(int build, int single_id) {
    if (build && getuid() == 0)
        return set_capabilities(BUILD_CAPS, 0);
    if (getuid() == EXAMINER_UID && getgid() == EXAMINER_GID && !single_id && !set_capabilities(EXAMINER_CAPS, EXAMINER_CAPS))
        return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH, 0, 0);
    return set_capabilities(0, 0);
}

int loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int result = ioctl(fd, SIOCSIFFLAGS, &request);
    close(fd);
    return result;
}

#if defined(__x86_64__)
#define NATIVE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE AUDIT_ARCH_AARCH64
#else
#error "gymsmith-box knows x86_64 and aarch64"
#endif

#define FIELD(f) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, f))
#define ARGUMENT(n) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8 * (n))
#define RETURN(value) BPF_STMT(BPF_RET | BPF_K, value)
#define REFUSE(error) RETURN(SECCOMP_RET_ERRNO | (error))
#define DENY(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##call, 0, 1), REFUSE(EPERM)
#define DENY_NUMBER(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), REFUSE(EPERM)
#define NEW_NAMESPACES (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)

/* Deny what reaches code of the kernel that no task needs and that has a history of holes; everything else is left to the
 * namespaces and missing capabilities. clone3 hides its flags from filters: ENOSYS makes every libc fall back to clone. */
int confine_filter(void) {
    struct sock_filter program[] = {
        FIELD(arch), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE, 1, 0), RETURN(SECCOMP_RET_KILL_PROCESS),
        FIELD(nr),
#if defined(__x86_64__)
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1), REFUSE(ENOSYS), /* x32 */
        DENY(iopl), DENY(ioperm), DENY(lookup_dcookie), DENY(nfsservctl), DENY(vhangup),
#endif
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 4), ARGUMENT(0),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NEW_NAMESPACES, 0, 1), REFUSE(EPERM), RETURN(SECCOMP_RET_ALLOW),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 435 /* clone3 */, 0, 1), REFUSE(ENOSYS),
        /* socket families: local, IPv4, IPv6, netlink; vsock and AF_ALG are not kept apart by namespaces */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 7), ARGUMENT(0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_UNIX, 4, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET6, 2, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_NETLINK, 1, 0),
        REFUSE(EAFNOSUPPORT), RETURN(SECCOMP_RET_ALLOW),
        /* pushing characters into a terminal */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 5), ARGUMENT(1),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x5412 /* TIOCSTI */, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x541c /* TIOCLINUX */, 0, 1), REFUSE(EPERM), RETURN(SECCOMP_RET_ALLOW),
        /* a command's first process adopts its orphans, which is how its whole tree is found at a deadline; it may not resign */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 6), ARGUMENT(0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_SET_CHILD_SUBREAPER, 0, 3), ARGUMENT(1),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1), REFUSE(EPERM), RETURN(SECCOMP_RET_ALLOW),
        /* whoever opens or starts a file under a lease waits for its holder, PID 1 included */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl, 0, 4), ARGUMENT(1),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1024 /* F_SETLEASE */, 0, 1), REFUSE(EPERM), RETURN(SECCOMP_RET_ALLOW),
        /* root inside has PID 1's user id, which is enough to take its limits away */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prlimit64, 0, 4), ARGUMENT(0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 1), REFUSE(EPERM), RETURN(SECCOMP_RET_ALLOW),
        DENY(unshare), DENY(setns), DENY(mount), DENY(umount2), DENY(pivot_root), DENY(swapon), DENY(swapoff), DENY(reboot),
        DENY(bpf), DENY(keyctl), DENY(add_key), DENY(request_key), DENY(userfaultfd), DENY(perf_event_open),
        DENY(kexec_load), DENY(open_by_handle_at), DENY(name_to_handle_at), DENY(init_module), DENY(finit_module),
        DENY(delete_module), DENY(settimeofday), DENY(clock_settime), DENY(clock_adjtime), DENY(adjtimex), DENY(acct),
        DENY(quotactl), DENY(syslog), DENY(fanotify_init), DENY(kcmp), DENY(move_pages), DENY(migrate_pages), DENY(mbind),
        DENY(set_mempolicy),
        DENY_NUMBER(320 * (NATIVE == AUDIT_ARCH_X86_64) + 294 * (NATIVE == AUDIT_ARCH_AARCH64)), /* kexec_file_load */
        DENY_NUMBER(425), DENY_NUMBER(426), DENY_NUMBER(427), /* io_uring_setup, _enter, _register */
        DENY_NUMBER(428), DENY_NUMBER(429), DENY_NUMBER(430), DENY_NUMBER(431), DENY_NUMBER(432), DENY_NUMBER(433),
        /* open_tree move_mount fsopen fsconfig fsmount fspick */
        DENY_NUMBER(438), DENY_NUMBER(440), DENY_NUMBER(442), DENY_NUMBER(443), DENY_NUMBER(467),
        /* pidfd_getfd process_madvise mount_setattr quotactl_fd open_tree_attr */
        RETURN(SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter);
}
