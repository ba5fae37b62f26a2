/* usage: cask FILE
 * Each line of FILE is a cask: its name, and bung diameter, head diameter and length in centimetres.
 * Prints what each holds in litres, by Kepler's rule of the barrel. */
#include <stdio.h>

static const double PI = 3.14159265358979323846;

/* Litres in a cask measured in centimetres. */
static double litres(double bung, double head, double length)
{
    return PI * length * (2 * bung * bung + head * head) / 12 / 1000;
}

int main(int argc, char **argv)
{
    char name[32];
    double bung, head, length, total = 0;

    if (argc != 2) {
        fprintf(stderr, "usage: cask FILE\n");
        return 2;
    }
    FILE *file = fopen(argv[1], "r");
    if (!file) {
        perror(argv[1]);
        return 1;
    }
    int found;
    while ((found = fscanf(file, "%31s %lf %lf %lf", name, &bung, &head, &length)) == 4) {
        double holds = litres(bung, head, length);
        printf("%-12s %7.1f l\n", name, holds);
        total += holds;
    }
    if (found != EOF) {
        fprintf(stderr, "%s: a line is not NAME BUNG HEAD LENGTH\n", argv[1]);
        return 1;
    }
    fclose(file);
    printf("%-12s %7.1f l\n", "together", total);
    return 0;
}
