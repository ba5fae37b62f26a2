# usage: test.sh PROGRAM
# A cylinder is the cask whose volume is known; a broken line is refused.
set -eu
echo "cylinder 20 20 100" > cylinder.txt
"$1" cylinder.txt | grep -q "^cylinder *31.4 l$"
echo "cylinder holds what it should"
echo "cask 1 2" > broken.txt
if "$1" broken.txt 2> said.txt; then exit 1; fi
grep -q "is not NAME BUNG HEAD LENGTH" said.txt
echo "broken line refused"
