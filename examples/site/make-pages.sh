# usage: make-pages.sh TITLE FROM TO
# Wraps every text in FROM into a page in TO.
mkdir -p "$3"
for text in "$2"/*.txt; do
    name=$(basename "$text" .txt)
    { echo "<title>$1: $name</title>"; sed 's/^/<p>/' "$text"; } > "$3/$name.html"
    echo "made $name.html"
done
