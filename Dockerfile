# The program and nothing else: `make image` builds it static and gives the directory it lies in as the context. Certificates of
# public authorities are built into the program; those of private ones come from the chart's `registries`.
FROM scratch
LABEL org.opencontainers.image.title=shoal org.opencontainers.image.licenses=Apache-2.0
COPY shoal /usr/bin/shoal
ENV PATH=/usr/bin
USER 65532:65532
ENTRYPOINT ["/usr/bin/shoal"]
