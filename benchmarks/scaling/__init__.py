"""How time and memory grow with the library, the image, the number of atlases and the number of scans."""
