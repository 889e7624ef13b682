/* Prints the IPv4 addresses that getaddrinfo of the C library it was built with finds for a name. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *found;
    if (argc != 2 || getaddrinfo(argv[1], NULL, &hints, &found) != 0)
        return 1;
    for (; found; found = found->ai_next) {
        char text[INET_ADDRSTRLEN];
        puts(inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text));
    }
    return 0;
}
