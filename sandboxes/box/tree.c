/* The processes below one process, however they tried to get away: found in /proc, stopped, then killed. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "box.h"

#define MAX_TREE 8192

struct process {
    pid_t pid, parent;
};

static int list_processes(struct process *list) {
    DIR *directory = opendir("/proc");
    struct dirent *entry;
    int count = 0;
    while (directory && count < MAX_TREE && (entry = readdir(directory))) {
        char path[64], text[512], *close_bracket;
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        snprintf(path, sizeof path, "/proc/%.20s/stat", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        if (n <= 0)
            continue;
        text[n] = 0;
        /* the name between brackets may hold anything; what follows the last bracket is the kernel's */
        if (!(close_bracket = strrchr(text, ')')) || strlen(close_bracket) < 4)
            continue;
        list[count++] = (struct process){atoi(entry->d_name), atoi(close_bracket + 4)};
    }
    if (directory)
        closedir(directory);
    return count;
}

/* Stopped first: a stopped fork bomb keeps its places but makes no more processes, so the walk comes to an end. */
void kill_tree(pid_t top) {
    static struct process list[MAX_TREE];
    static pid_t tree[MAX_TREE];
    int members = 1;
    tree[0] = top;
    kill(top, SIGSTOP);
    for (int found = 1; found;) {
        int count = list_processes(list);
        found = 0;
        for (int grew = 1; grew;) {
            grew = 0;
            for (int i = 0; i < count; i++) {
                int known = 0, below = 0;
                for (int k = 0; k < members && !known; k++) {
                    known = tree[k] == list[i].pid;
                    below |= tree[k] == list[i].parent;
                }
                if (known || !below || members == MAX_TREE)
                    continue;
                tree[members++] = list[i].pid;
                kill(list[i].pid, SIGSTOP);
                grew = found = 1;
            }
        }
    }
    for (int k = members - 1; k >= 0; k--)
        kill(tree[k], SIGKILL);
}
