FROM scratch AS x
COPY g /
FROM scratch
